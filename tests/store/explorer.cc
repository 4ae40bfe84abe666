#include "store/explorer.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace moe::test {

// ---- who goes on

RandomChooser::RandomChooser(uint64_t seed) : random_(seed) {
  switching_ = std::uniform_real_distribution<>(0.02, 0.6)(random_);
  by_priority_ = random_() % 2 == 0;
  constexpr int64_t kSteps = 600;  // about as many as a script has
  for (uint64_t i = random_() % 4; i > 0; --i)
    falls_.push_back(static_cast<int64_t>(random_() % kSteps));
}

size_t RandomChooser::first_by_priority(const std::vector<int>& enabled) {
  while (priorities_.size() <= static_cast<size_t>(enabled.back()))
    priorities_.push_back(static_cast<int64_t>(random_() >> 1));
  const auto priority = [&](int task) -> int64_t& {
    return priorities_[static_cast<size_t>(task)];
  };
  const auto first = std::max_element(enabled.begin(), enabled.end(),
                                      [&](int a, int b) { return priority(a) < priority(b); });
  ++step_;
  if (std::find(falls_.begin(), falls_.end(), step_) != falls_.end()) priority(*first) = -step_;
  return static_cast<size_t>(first - enabled.begin());
}

size_t RandomChooser::choose(const std::vector<int>& enabled, int running) {
  if (by_priority_) return first_by_priority(enabled);
  for (size_t i = 0; i < enabled.size(); ++i)
    if (enabled[i] == running && !std::bernoulli_distribution(switching_)(random_)) return i;
  return random_() % enabled.size();
}

size_t ExhaustiveChooser::choose(const std::vector<int>& enabled, int running) {
  // Going on with the running one is choice 0; the others follow in their order.
  std::vector<size_t> order;
  for (size_t i = 0; i < enabled.size(); ++i)
    if (enabled[i] == running) order.push_back(i);
  const bool can_go_on = !order.empty();
  for (size_t i = 0; i < enabled.size(); ++i)
    if (enabled[i] != running) order.push_back(i);
  const size_t options = can_go_on && used_ == preemptions_ ? 1 : order.size();
  if (depth_ == path_.size()) path_.push_back({0, options});
  const size_t picked = path_[depth_++].picked;
  used_ += can_go_on && picked > 0;
  return order[picked];
}

bool ExhaustiveChooser::next() {
  depth_ = 0;
  used_ = 0;
  while (!path_.empty() && path_.back().picked + 1 >= path_.back().options) path_.pop_back();
  if (path_.empty()) return false;
  ++path_.back().picked;
  return true;
}

// ---- fibers

namespace {
constexpr size_t kStack = size_t{1} << 20;

// Tells sanitizers which stack is in use.
struct Place {
  void* fake_stack = nullptr;
  void* tsan = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
};

void leave([[maybe_unused]] Place& from, [[maybe_unused]] const Place& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.tsan, 0);
#endif
}

void arrive([[maybe_unused]] Place& here, [[maybe_unused]] Place* from) {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(here.fake_stack, &bottom, &size);
  if (from && !from->bottom) from->bottom = bottom, from->size = size;
#endif
}
}  // namespace

struct Explorer::Main {
  ucontext_t context;
  Place place;
};

struct Explorer::Task {
  Task() : stack(std::make_unique<char[]>(kStack)) {
    place.bottom = stack.get();
    place.size = kStack;
#if defined(__SANITIZE_THREAD__)
    place.tsan = __tsan_create_fiber(0);
#endif
  }
  ~Task() {
#if defined(__SANITIZE_THREAD__)
    __tsan_destroy_fiber(place.tsan);
#endif
  }

  std::unique_ptr<char[]> stack;
  ucontext_t context;
  Place place;
  std::function<void()> body;
  const std::function<bool()>* ready = nullptr;  // null: it can go on
  const char* where = "start";
  bool done = false;
};

namespace {
thread_local Explorer* starting = nullptr;
}

Explorer::Explorer() : main_(std::make_unique<Main>()) {
#if defined(__SANITIZE_THREAD__)
  main_->place.tsan = __tsan_get_current_fiber();
#endif
}
Explorer::~Explorer() = default;

void Explorer::enter() {
  Explorer& self = *starting;
  Task& task = *self.current_;
  arrive(task.place, &self.main_->place);
  task.body();
  task.body = nullptr;
  task.done = true;
  self.yield();
}

Explorer::Task& Explorer::start(std::function<void()> body) {
  if (spare_.empty()) spare_.push_back(std::make_unique<Task>());
  tasks_.push_back(std::move(spare_.back()));
  spare_.pop_back();
  Task& task = *tasks_.back();
  task.body = std::move(body);
  task.ready = nullptr;
  task.where = "start";
  task.done = false;
  task.place.fake_stack = nullptr;
  ::getcontext(&task.context);
  task.context.uc_stack.ss_sp = task.stack.get();
  task.context.uc_stack.ss_size = kStack;
  task.context.uc_link = nullptr;
  ::makecontext(&task.context, &Explorer::enter, 0);
  return task;
}

void Explorer::resume(Task& task) {
  current_ = &task;
  starting = this;
  leave(main_->place, task.place);
  ::swapcontext(&main_->context, &task.context);
  arrive(main_->place, nullptr);
  current_ = nullptr;
}

void Explorer::yield() {
  Task& task = *current_;
  leave(task.place, main_->place);
  ::swapcontext(&task.context, &main_->context);
  arrive(task.place, nullptr);
}

void Explorer::point(const char* where) {
  if (!current_) return;
  current_->where = where;
  yield();
}

void Explorer::wait(const char* where, const std::function<bool()>& ready) {
  if (!current_) return;
  current_->where = where;
  current_->ready = &ready;
  yield();
  current_->ready = nullptr;
}

void Explorer::spawn(std::function<void()> job) { start(std::move(job)); }

void Explorer::freed(void* slot, size_t bytes) { std::memset(slot, 0xa5, bytes); }

std::string Explorer::run(std::vector<std::function<void()>> tasks, Chooser& chooser,
                          const std::function<std::string()>& look) {
  for (auto& body : tasks) start(std::move(body));
  int running = -1;
  std::string wrong;
  while (wrong.empty()) {
    std::vector<int> enabled;
    bool running_enabled = false, all_done = true;
    for (size_t i = 0; i < tasks_.size(); ++i) {
      const Task& task = *tasks_[i];
      all_done = all_done && task.done;
      if (task.done || (task.ready && !(*task.ready)())) continue;
      enabled.push_back(static_cast<int>(i));
      running_enabled = running_enabled || static_cast<int>(i) == running;
    }
    if (all_done) break;
    if (enabled.empty()) {
      for (size_t i = 0; i < tasks_.size(); ++i)
        if (!tasks_[i]->done)
          wrong += "task " + std::to_string(i) + " waits for ever at " + tasks_[i]->where + "; ";
      break;
    }
    running = enabled[chooser.choose(enabled, running_enabled ? running : -1)];
    ++steps_;
    resume(*tasks_[static_cast<size_t>(running)]);
    if (look) wrong = look();
  }
  if (!wrong.empty()) {  // their stacks hold things: kept for ever
    for (auto& task : tasks_) (void)task.release();
    tasks_.clear();
  }
  for (auto& task : tasks_) spare_.push_back(std::move(task));
  tasks_.clear();
  return wrong;
}

}  // namespace moe::test
