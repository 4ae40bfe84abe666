// exp, log, log1p and tanh that give the same bits on every CPU and GPU: polynomials in double with
// explicit fma, no library call. Relative error below 2^-33, so a result rounded to float is within
// 0.501 ulp of the true value.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "router/team.h"

namespace moe::rule {

MOE_RULE int64_t bits_of(double value) {
  int64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
MOE_RULE double double_of(int64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// 0 below -708, infinity above 709.
MOE_RULE double exp(double x) {
  constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: the sum's low bits are the integer
  const bool tiny = !(x >= -708), huge = x > 709;
  if (tiny || huge) x = 0;
  const double shifted = fma(x, kLog2E, kRound);
  const double n = shifted - kRound;
  const double r = fma(-n, kLn2, x);  // |r| <= ln(2) / 2
  double p = 2.482087779284301e-05;   // exp(r) = 1 + r + r^2 p(r), minimax
  p = fma(p, r, 0.0001989923504699434);
  p = fma(p, r, 0.0013888923751340884);
  p = fma(p, r, 0.008333298545659744);
  p = fma(p, r, 0.04166666640527408);
  p = fma(p, r, 0.16666666718801304);
  p = fma(p, r, 0.5000000000020891);
  p = fma(fma(p, r, 1.0), r, 1.0);
  const double scale = double_of((bits_of(shifted) - bits_of(kRound) + 1023) << 52);  // 2^n
  if (tiny) return 0;
  return huge ? HUGE_VAL : p * scale;
}

// 2 atanh(z) = log((1 + z) / (1 - z)) for |z| <= 1/3.
MOE_RULE double log_of_ratio(double z) {
  const double y = z * z;
  double p = 0.10043132119186729;  // atanh(z) / z = p(z^2), minimax
  p = fma(p, y, 0.07031875214033989);
  p = fma(p, y, 0.09155554507246615);
  p = fma(p, y, 0.11107659957426132);
  p = fma(p, y, 0.14285813564914424);
  p = fma(p, y, 0.19999998603596358);
  p = fma(p, y, 0.33333333340796106);
  p = fma(p, y, 0.9999999999999339);
  return 2 * z * p;
}

// Of a positive, normal, finite x.
MOE_RULE double log(double x) {
  constexpr double kLn2 = 0.6931471805599453;
  const int64_t bits = bits_of(x);
  const int64_t half_up = (bits + 0x0009'5f61'9980'c433) >> 52;  // splits binades at sqrt(2)
  const double mantissa = double_of(bits - ((half_up - 1023) << 52));
  return fma(static_cast<double>(half_up - 1023), kLn2,
             log_of_ratio((mantissa - 1) / (mantissa + 1)));
}

// log(1 + y) for 0 <= y <= 1, accurate relative to y.
MOE_RULE double log1p(double y) { return log_of_ratio(y / (2 + y)); }

MOE_RULE double tanh(double x) {
  const double magnitude = fabs(x);
  if (magnitude < 0.1) {  // the series; the quotient below would cancel
    const double y = x * x;
    double p = 62.0 / 2835;
    p = fma(p, y, -17.0 / 315);
    p = fma(p, y, 2.0 / 15);
    p = fma(p, y, -1.0 / 3);
    return fma(p * y, x, x);
  }
  const double e = exp(-2 * magnitude);
  const double t = (1 - e) / (1 + e);
  return x < 0 ? -t : t;
}

}  // namespace moe::rule
