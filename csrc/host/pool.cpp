#include "host/pool.h"

#include <atomic>
#include <new>
#include <stdexcept>

namespace longspan::host {

struct Job {
  std::atomic<int64_t> next{0};
  int64_t tasks;
  void (*task)(void*, int64_t, int);
  void* context;

  void drain(int worker) {
    for (int64_t i = next++; i < tasks; i = next++) task(context, i, worker);
  }
};

Pool::Pool(int threads) {
  try {
    for (int id = 1; id < threads; ++id) workers_.emplace_back(&Pool::work, this, id);
  } catch (...) {  // the machine gives no more: those that run must end before their memory does
    stop();
    throw;
  }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Pool::work(int id) {
  uint64_t seen = 0;
  for (;;) {
    std::shared_ptr<Job> job;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
      if (stop_) return;
      seen = generation_;
      job = job_;
    }
    job->drain(id);
    std::lock_guard lock(mutex_);
    if (--running_ == 0) done_.notify_one();
  }
}

void Pool::run(int64_t tasks, void (*task)(void*, int64_t, int), void* context) {
  auto job = std::make_shared<Job>();
  job->tasks = tasks, job->task = task, job->context = context;
  {
    std::lock_guard lock(mutex_);
    job_ = job;
    running_ = int(workers_.size());
    ++generation_;
  }
  wake_.notify_all();
  job->drain(0);
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return running_ == 0; });
}

HostContext::HostContext(int threads) {
  if (threads < 0 || threads > kMostThreads)
    throw std::invalid_argument("threads is " + std::to_string(threads) + "; it must be 0 (all cores), or 1 to " +
                                std::to_string(kMostThreads));
  const int all = std::max(1, int(std::thread::hardware_concurrency()));
  pool_ = std::make_unique<Pool>(threads ? threads : all);
}

kernels::Context HostContext::context() {
  const auto run = [](void* self, int64_t tasks, void (*task)(void*, int64_t, int), void* context) {
    static_cast<Pool*>(self)->run(tasks, task, context);
  };
  return {{pool_.get(), pool_->threads(), run}, {}, {this, &get}, kernels::select_isa(std::getenv("LONGSPAN_ISA"))};
}

void* HostContext::get(void* self, int64_t bytes) {
  constexpr int64_t kAlignment = 64;
  void* block = std::aligned_alloc(kAlignment, size_t(kernels::round_up(bytes + 1, kAlignment)));
  if (!block) throw std::bad_alloc();
  static_cast<HostContext*>(self)->blocks_.emplace_back(block);
  return block;
}

}  // namespace longspan::host
