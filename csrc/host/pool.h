#pragma once
// Threads and memory for kernels that are called without torch.
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/common/context.h"

namespace longspan::host {

inline constexpr int kMostThreads = 1024;

/// A fixed set of threads that sleep between calls. One call runs at a time.
class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  int threads() const { return int(workers_.size()) + 1; }
  void run(int64_t tasks, void (*task)(void*, int64_t, int), void* context);

 private:
  void work(int id);
  void stop();
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::shared_ptr<struct Job> job_;
  uint64_t generation_ = 0;
  int running_ = 0;
  bool stop_ = false;
};

/// The context of one kernel call; its scratch is freed with it. `threads` 0 uses every core of the machine.
class HostContext {
 public:
  explicit HostContext(int threads);
  kernels::Context context();

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  static void* get(void* self, int64_t bytes);
  std::unique_ptr<Pool> pool_;
  std::vector<std::unique_ptr<void, Free>> blocks_;
};

}  // namespace longspan::host
