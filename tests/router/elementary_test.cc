// Our exp, log, log1p and tanh against the C library's long double.
#include "router/elementary.h"

#include <cfloat>
#include <cmath>
#include <random>

#include "catch.h"

using namespace moe;

namespace {

using Real = long double;

double relative_error(double got, Real wanted) {
  return wanted == 0 ? std::abs(got) : static_cast<double>(std::abs((got - wanted) / wanted));
}

// |float(got) - wanted| in units of the last place of float(wanted).
double float_ulps(double got, Real wanted) {
  const float magnitude = std::abs(static_cast<float>(wanted));
  const float ulp = std::nextafter(magnitude, INFINITY) - magnitude;
  return static_cast<double>(std::abs(static_cast<float>(got) - wanted) / ulp);
}

struct Worst {
  double relative = 0, ulps = 0;
  void add(double got, Real wanted) {
    relative = std::max(relative, relative_error(got, wanted));
    if (std::abs(wanted) < FLT_MAX) ulps = std::max(ulps, float_ulps(got, wanted));
  }
};

// Every `stride`-th float from `low` to `high`, which have equal signs.
template <class Visit>
void floats(float low, float high, int32_t stride, Visit visit) {
  int32_t first, last;
  memcpy(&first, &low, sizeof first);
  memcpy(&last, &high, sizeof last);
  if (first > last) std::swap(first, last);
  for (int64_t bits = first; bits <= last; bits += stride) {
    const int32_t narrow = static_cast<int32_t>(bits);
    float value;
    memcpy(&value, &narrow, sizeof value);
    visit(value);
  }
}

constexpr double kBound = 0x1p-33;

}  // namespace

TEST_CASE("exp is within 2^-33 and half a float ulp", "[router][mission-13]") {
  Worst worst;
  const auto check = [&](double x) { worst.add(rule::exp(x), std::exp(static_cast<Real>(x))); };
  floats(1e-30f, 709.f, 1009, check);
  floats(-1e-30f, -708.f, 1009, check);
  std::mt19937_64 random(test::seed());
  std::uniform_real_distribution<double> anywhere(-708, 709), near(-1, 1);
  for (int i = 0; i < 200000; ++i) check(anywhere(random)), check(near(random));
  CHECK(worst.relative < kBound);
  CHECK(worst.ulps < 0.502);
  CHECK(rule::exp(0) == 1);
  CHECK(rule::exp(-0.0) == 1);
  CHECK(rule::exp(-708.5) == 0);
  CHECK(rule::exp(-INFINITY) == 0);
  CHECK(rule::exp(709.5) == INFINITY);
}

TEST_CASE("log is within 2^-33", "[router]") {
  Worst worst;
  const auto check = [&](double x) {
    if (x != 1) worst.add(rule::log(x), std::log(static_cast<Real>(x)));
  };
  floats(FLT_MIN, FLT_MAX, 1009, check);
  floats(0.5f, 2.f, 101, check);  // where the result passes 0
  std::mt19937_64 random(test::seed());
  std::uniform_real_distribution<double> exponent(-1021, 1023), near(1 - 1e-3, 1 + 1e-3);
  for (int i = 0; i < 200000; ++i) check(std::exp2(exponent(random))), check(near(random));
  CHECK(worst.relative < kBound);
  CHECK(rule::log(1) == 0);
}

TEST_CASE("log1p is within 2^-33 from 0 to 1", "[router]") {
  Worst worst;
  const auto check = [&](double y) { worst.add(rule::log1p(y), std::log1p(static_cast<Real>(y))); };
  floats(FLT_TRUE_MIN, 1.f, 1009, check);
  check(1e-300), check(1e-17), check(1);
  CHECK(worst.relative < kBound);
  CHECK(rule::log1p(0) == 0);
}

TEST_CASE("tanh is within 2^-30, keeps signs and saturates", "[router]") {
  Worst worst;
  const auto check = [&](double x) { worst.add(rule::tanh(x), std::tanh(static_cast<Real>(x))); };
  floats(FLT_MIN, 1000.f, 1009, check);
  floats(-FLT_MIN, -1000.f, 1009, check);
  floats(0.09f, 0.11f, 1, check);  // where the two formulas meet
  CHECK(worst.relative < 0x1p-30);
  CHECK(rule::tanh(0) == 0);
  CHECK(rule::tanh(1e30) == 1);
  CHECK(rule::tanh(-1e30) == -1);
}
