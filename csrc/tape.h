// Kernels in the order in which they were called, each with its arrays: played back, they run without Python between them.
#pragma once

#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "array.h"

namespace fastnn {

class Tape {
 public:
  // Calls a function of this module; its kernel runs, and joins the tape.
  void record(const py::object& function, const py::args& arguments) {
    struct Recording {
      Tape* const before;
      explicit Recording(Tape* tape) : before(recording_) { recording_ = tape; }
      ~Recording() { recording_ = before; }
    } recording(this);
    function(*arguments);
  }

  // Names one more array in whose place a launch reads another; false where a kernel has a part of it, or writes to it.
  bool add_input(const py::object& array) {
    Input& input = inputs_.emplace_back(array);
    for (Entry& entry : entries_)
      for (ArrayView& view : entry.arrays) {
        if (view.data() == input.recorded.data() && view.bytes() == input.recorded.bytes() && !view.written())
          input.readers.push_back(&view);
        else if (view.overlaps(input.recorded))
          return false;
      }
    // Another one takes its place before anything is read.
    input.recorded.let_go();
    for (ArrayView* view : input.readers) view->let_go();
    return true;
  }

  // With an array in the place of each input, and like it.
  void launch(const py::args& arrays) {
    place(given(arrays, kOnce), 0);
    const py::gil_scoped_release release;
    play();
  }

  // What a launch reads in the place of an input: in each step the same, or a row of its own.
  struct Given {
    char* data;
    int64_t stride;
  };

  // Of arrays that are each like their input, or have a row like it for each of `steps`, unless these are kOnce. They must
  // outlive their use.
  static constexpr int64_t kOnce = -1;
  std::vector<Given> given(const py::sequence& arrays, int64_t steps) const {
    if (arrays.size() != inputs_.size())
      throw py::type_error("launch takes " + std::to_string(inputs_.size()) + " inputs, got " +
                           std::to_string(arrays.size()));
    std::vector<Given> all;
    for (size_t i = 0; i < inputs_.size(); ++i) {
      const py::object array = arrays[i];
      const ArrayView &recorded = inputs_[i].recorded, view("launch", "an input", array, Access::kRead);
      const bool rows = view.rank() == recorded.rank() + 1 && view.dim(0) == steps;
      if (view.dtype() != recorded.dtype() || !((rows ? view.shape().without_first() : view.shape()) == recorded.shape()))
        throw py::value_error("launch: input " + std::to_string(i) + " was recorded as " + type_name(recorded.dtype()) +
                              " " + text(recorded.shape()) + ", got " + type_name(view.dtype()) + " " + text(view.shape()) +
                              (steps == kOnce ? "" : " for " + std::to_string(steps) + " steps"));
      all.push_back({view.data(), rows ? recorded.bytes() : 0});
    }
    return all;
  }

  // Whether launched with arrays of the same types and shapes.
  bool has_inputs_like(const Tape& other) const {
    return std::equal(inputs_.begin(), inputs_.end(), other.inputs_.begin(), other.inputs_.end(),
                      [](const Input& a, const Input& b) {
                        return a.recorded.dtype() == b.recorded.dtype() && a.recorded.shape() == b.recorded.shape();
                      });
  }

  void place(const std::vector<Given>& arrays, int64_t step) {
    for (size_t i = 0; i < arrays.size(); ++i)
      for (ArrayView* view : inputs_[i].readers) view->move_to(arrays[i].data + step * arrays[i].stride);
  }

  void play() const {
    for (const Entry& entry : entries_) entry.kernel();
  }

  static Tape* recording() { return recording_; }

  void add(std::function<void()> kernel, std::deque<ArrayView>&& arrays) {
    entries_.push_back({std::move(kernel), std::move(arrays)});
  }

 private:
  struct Entry {
    std::function<void()> kernel;
    std::deque<ArrayView> arrays;  // what the kernel points to, and memory that must not go away
  };
  struct Input {
    explicit Input(const py::object& array) : recorded("launch", "an input", array, Access::kRead) {}
    ArrayView recorded;
    std::vector<ArrayView*> readers;
  };
  std::deque<Entry> entries_;
  std::deque<Input> inputs_;
  static inline thread_local Tape* recording_ = nullptr;
};

inline bool is_sum_finite(const ArrayView& a) {
  const auto sum = [&]<class T>(const T* begin) { return std::accumulate(begin, begin + a.size(), 0.0); };
  return std::isfinite(a.dtype() == 'f' ? sum(reinterpret_cast<const float*>(a.data()))
                                        : sum(reinterpret_cast<const double*>(a.data())));
}

// Up to `count` steps, one after the other: each plays the first tape, copies the results to its row of what is kept, then
// plays the other tapes. Where there are any, a step whose first result, its losses, has no finite sum is the last, and ends
// there. All tapes have inputs alike. Gives the number of steps done.
inline int64_t launch_steps(int64_t count, const py::list& tapes, const py::list& inputs, const py::list& results,
                            const py::list& kept) {
  const auto fail = [](const std::string& what) { throw py::value_error("launch_steps: " + what); };
  if (tapes.empty() || results.empty()) fail("there is no tape, or no result");
  if (results.size() != kept.size())
    fail(std::to_string(results.size()) + " results, but " + std::to_string(kept.size()) + " arrays to keep them");
  std::vector<Tape*> played;
  for (const py::handle tape : tapes) {
    played.push_back(tape.cast<Tape*>());
    if (!played.back()->has_inputs_like(*played.front())) fail("the tapes have different inputs");
  }
  const std::vector<Tape::Given> given = played.front()->given(inputs, count);
  std::deque<ArrayView> from, to;
  for (size_t i = 0; i < results.size(); ++i) {
    const ArrayView& one = from.emplace_back("launch_steps", "a result", results[i], Access::kRead);
    const ArrayView& rows = to.emplace_back("launch_steps", "what is kept", kept[i], Access::kWrite);
    if (rows.dtype() != one.dtype() || rows.rank() != one.rank() + 1 || rows.dim(0) != count ||
        !(rows.shape().without_first() == one.shape()))
      fail(std::to_string(count) + " results " + type_name(one.dtype()) + " " + text(one.shape()) + " do not fit into " +
           type_name(rows.dtype()) + " " + text(rows.shape()));
  }
  if (played.size() > 1 && from[0].dtype() != 'f' && from[0].dtype() != 'd') fail("the first result must be of floats");
  const py::gil_scoped_release release;
  const auto play = [&](size_t tape, int64_t step) {
    played[tape]->place(given, step);
    played[tape]->play();
  };
  for (int64_t step = 0; step < count; ++step) {
    play(0, step);
    for (size_t i = 0; i < from.size(); ++i)
      std::memcpy(to[i].data() + step * from[i].bytes(), from[i].data(), size_t(from[i].bytes()));
    if (played.size() > 1 && !is_sum_finite(from[0])) return step + 1;
    for (size_t tape = 1; tape < played.size(); ++tape) play(tape, step);
  }
  return count;
}

}  // namespace fastnn
