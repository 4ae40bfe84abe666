// Runs the store's own code on fibers, one at a time, and chooses at every meeting point who goes
// on: at random from a seed, or every way there is with few preemptions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "store/schedule.h"

namespace moe::test {

// Who goes on. `enabled` are the numbers of those who can, never none; `running`, the one that came
// here last, is -1 if it cannot. Returns an index into `enabled`.
class Chooser {
 public:
  virtual ~Chooser() = default;
  virtual size_t choose(const std::vector<int>& enabled, int running) = 0;
};

// By the seed one of two: goes on with the running one, mostly; or has priorities by chance, some
// of which fall at some step, so that somebody stands still while others do much (Burckhardt et
// al., "A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs", 2010).
class RandomChooser final : public Chooser {
 public:
  explicit RandomChooser(uint64_t seed);
  size_t choose(const std::vector<int>& enabled, int running) override;

 private:
  size_t first_by_priority(const std::vector<int>& enabled);

  std::mt19937_64 random_;
  double switching_;
  bool by_priority_;
  std::vector<int64_t> priorities_;  // by task
  std::vector<int64_t> falls_;       // steps
  int64_t step_ = 0;
};

// All choices with at most `preemptions` switches away from somebody who could go on; one run after
// the other:  do run(chooser); while (chooser.next());
class ExhaustiveChooser final : public Chooser {
 public:
  explicit ExhaustiveChooser(int preemptions) : preemptions_(preemptions) {}
  size_t choose(const std::vector<int>& enabled, int running) override;
  bool next();  // prepares the next run; false if there is none

 private:
  struct Choice {
    size_t picked, options;
  };
  int preemptions_;
  int used_ = 0;
  size_t depth_ = 0;
  std::vector<Choice> path_;
};

// Not for use by several threads. Calls from outside of its tasks change nothing.
class Explorer final : public Schedule {
 public:
  Explorer();
  ~Explorer() override;

  // Runs `tasks` to their ends, and what they spawn. What went wrong: empty, or who waits for ever,
  // or what `look` said, which is called after every step and ends the run by saying anything.
  std::string run(std::vector<std::function<void()>> tasks, Chooser& chooser,
                  const std::function<std::string()>& look = {});

  void point(const char* where) override;
  void wait(const char* where, const std::function<bool()>& ready) override;
  void spawn(std::function<void()> job) override;
  // Poisons the slot: whoever still reads it computes something else.
  void freed(void* slot, size_t bytes) override;
  bool breaks(Rule rule) const override { return rule == broken_; }

  // From now on the store breaks `rule`.
  void break_rule(Rule rule) { broken_ = rule; }

  int64_t steps() const { return steps_; }  // of all runs

 private:
  struct Task;
  Task& start(std::function<void()> body);
  void resume(Task& task);
  void yield();
  static void enter();

  std::vector<std::unique_ptr<Task>> tasks_, spare_;
  Task* current_ = nullptr;
  struct Main;
  std::unique_ptr<Main> main_;
  int64_t steps_ = 0;
  std::optional<Rule> broken_;
};

}  // namespace moe::test
