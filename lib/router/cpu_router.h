// The built-in rule on the CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "moe/router.h"

namespace moe {

// ok, or invalid_argument naming the tensor: what route_cpu() needs to know about `weights`, which
// costs nothing to check. `hidden` is the model's, or -1 if logits are always given.
Status check_shapes(const RouterSpec& spec, const RouterWeights& weights);

// Also looks at every value: biases and scales must be numbers, token_experts in range.
Status check_values(const RouterSpec& spec, const RouterWeights& weights);

// Scratch of route_cpu() for `tokens` rows of `hidden` elements on `concurrency` workers.
size_t route_workspace_bytes(const RouterSpec& spec, int64_t hidden, int64_t tokens,
                             int concurrency) noexcept;

// Router::route() over weights that are views; allocates nothing. Nothing is written on an error.
// A row's bits depend on that row alone (its place in the batch too, if the rule has a capacity).
Status route_cpu(const RouterSpec& spec, const RouterWeights& weights, const RouteInput& input,
                 const Routing& out, RouteCounts* counts);

}  // namespace moe
