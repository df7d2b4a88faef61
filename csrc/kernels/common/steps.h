#pragma once
#include <vector>

#include "common/context.h"

namespace longspan::kernels {

/// Scratch of the steps of a call: what a step took is free again for the next one, so that the memory does not grow with
/// the panels of rows.
class Steps {
 public:
  explicit Steps(const Context& context) : context_(context) {}

  /// The context of one step; what the steps before took is used again.
  Context next() {
    for (Block& block : blocks_) block.taken = false;
    Context step = context_;
    step.workspace = {this, &get};
    return step;
  }

 private:
  struct Block {
    void* data;
    int64_t bytes;
    bool taken;
  };

  /// The smallest free block that is large enough, or a new one.
  static void* get(void* self, int64_t bytes) {
    auto* steps = static_cast<Steps*>(self);
    Block* best = nullptr;
    for (Block& block : steps->blocks_)
      if (!block.taken && block.bytes >= bytes && (!best || block.bytes < best->bytes)) best = &block;
    if (!best) {
      const Workspace& from = steps->context_.workspace;
      best = &steps->blocks_.emplace_back(Block{from.get(from.self, bytes), bytes, false});
    }
    best->taken = true;
    return best->data;
  }

  const Context& context_;
  std::vector<Block> blocks_;
};

}  // namespace longspan::kernels
