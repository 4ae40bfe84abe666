// Everything at once.
#pragma once

#include "moe/checkpoint.h"
#include "moe/communicator.h"
#include "moe/eviction.h"
#include "moe/expert_gemm.h"
#include "moe/expert_store.h"
#include "moe/host.h"
#include "moe/metrics.h"
#include "moe/model.h"
#include "moe/router.h"
#include "moe/simulate.h"
#include "moe/status.h"
#include "moe/stream.h"
#include "moe/tensor.h"
#include "moe/trace.h"
#include "moe/version.h"
#include "moe/weights.h"
