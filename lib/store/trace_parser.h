// Turns the text of a trace file into a trace.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "moe/trace.h"

namespace moe {

class TraceParser {
 public:
  explicit TraceParser(std::string_view name) : name_(name) {}

  // The next piece of the file, cut anywhere.
  Status feed(std::string_view text);
  // After the last piece.
  Result<RoutingTrace> finish();

 private:
  // Where a column's value goes.
  enum class Kind { skip, seq, step, token_pos, layer, experts, expert, weight };
  struct Column {
    Kind kind = Kind::skip;
    size_t place = 0;  // of expert and weight
  };

  Status line(std::string_view text);
  Status header(std::string_view text);
  Status row(std::string_view text);
  // Fills `row_` or its experts; false if the text is not what the column holds.
  bool take(const Column& column, std::string_view text);
  Status keep_row();

  std::string name_;
  std::string rest_;  // of a line that was cut
  int64_t line_ = 0;
  std::vector<Column> columns_;
  RoutingTrace trace_;
  std::vector<int32_t> experts_of_layer_;  // by layer; 0: not seen
  bool declared_ = false;                  // there is a column `experts`

  TraceRow row_;
  int32_t row_experts_ = 0;
  std::vector<int32_t> ids_;    // (top_k) of the row
  std::vector<float> weights_;  // (top_k) of the row
};

}  // namespace moe
