// The end of a forward, inside its last kernel.
#pragma once

#include "moe/model.h"
#include "runtime/note.h"

namespace moe::cuda {

// By one thread, after wait_for_previous_kernel(): by then nothing reads the table any more.
__device__ inline void finish(const Finish& args) {
  if (args.report) {
    const ForwardNote& note = *args.note;
    ForwardReport report;
    report.epoch = note.table.epoch;
    report.rows = note.rows;
    report.nonfinite_rows = note.counts.nonfinite_rows;
    report.short_rows = note.counts.short_rows;
    report.dropped = note.counts.dropped;
    report.error = note.error;
    *args.report = report;
  }
  if (args.totals) {
    const auto add = [](uint64_t& total, int64_t more) {
      if (more > 0)
        atomicAdd(reinterpret_cast<unsigned long long*>(&total),
                  static_cast<unsigned long long>(more));
    };
    add(args.totals->forwards, 1);
    add(args.totals->rows, args.note->rows);
    add(args.totals->nonfinite_rows, args.note->counts.nonfinite_rows);
    add(args.totals->dropped, args.note->counts.dropped);
  }
  if (!args.counters) return;
  __threadfence_system();
  volatile uint64_t* exited = &args.counters->exited;
  *exited = *exited + 1;
}

}  // namespace moe::cuda
