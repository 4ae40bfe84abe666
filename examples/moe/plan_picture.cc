// Load before and after as one HTML page: a cell per layer and rank, blue below the mean, red
// above.
#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "plan.h"

namespace moe::cli {
namespace {

// 1 is white; 0 full blue; 2 and more full red.
std::string colour(double over_mean) {
  const double x = std::clamp(over_mean - 1, -1.0, 1.0);
  const int fade = static_cast<int>(std::lround(255 * (1 - std::abs(x))));
  return x < 0 ? fmt::format("#{0:02x}{0:02x}ff", fade) : fmt::format("#ff{0:02x}{0:02x}", fade);
}

std::string heat_map(const Prediction& prediction) {
  const auto ranks = static_cast<int32_t>(prediction.layers.front().rank_share.size());
  const double width = std::max(1.0, std::min(16.0, 1000.0 / ranks)), height = 8;
  const auto layers = static_cast<double>(prediction.layers.size());
  std::string svg =
      fmt::format("<svg width=\"{:.0f}\" height=\"{:.0f}\" shape-rendering=\"crispEdges\">",
                  width * ranks, height * layers);
  double y = 0;
  for (const LayerPrediction& layer : prediction.layers) {
    for (int32_t r = 0; r < ranks; ++r)
      svg += fmt::format(
          "<rect x=\"{:.2f}\" y=\"{:.0f}\" width=\"{:.2f}\" height=\"{:.0f}\" fill=\"{}\">"
          "<title>layer {}, rank {}: {:.2f} of the mean</title></rect>",
          r * width, y, width, height, colour(layer.rank_share[r] * ranks), layer.layer, r,
          layer.rank_share[r] * ranks);
    y += height;
  }
  return svg + "</svg>";
}

std::string section(const char* title, const Prediction& prediction) {
  return fmt::format("<h2>{}</h2><p>balancedness {:.4f}, predicted {:.0f} us</p>{}", title,
                     prediction.balancedness, prediction.us, heat_map(prediction));
}

}  // namespace

std::string plan_picture(const PlanReport& report, const Prediction& before) {
  return fmt::format(
      "<!DOCTYPE html><html lang=\"en\"><meta charset=\"utf-8\"><title>moe plan</title>"
      "<style>body{{font:14px sans-serif;margin:2em}}svg{{border:1px solid #999}}</style>"
      "<h1>Load of {} ranks in {} layers</h1>"
      "<p>Rows are layers, columns ranks. White is the mean, blue less, red more; full red is "
      "twice "
      "the mean.</p>{}{}</html>\n",
      report.cluster.ranks(), report.usage.layers.size(),
      section(report.migrates ? "Before: in place" : "Before: linear", before),
      section("After: auto", report.chosen().prediction));
}

}  // namespace moe::cli
