// "did you mean": the nearest of many names, by edit distance.
#pragma once

#include <string>
#include <string_view>

namespace moe {

// Insertions, deletions and replacements that turn `a` into `b`; `limit` + 1 if more than `limit`.
int edit_distance(std::string_view a, std::string_view b, int limit);

// Offered names must live as long as this object; ties go to the first.
class NearestName {
 public:
  explicit NearestName(std::string_view wanted);

  void offer(std::string_view name);
  std::string_view name() const { return name_; }  // "" if none is near
  std::string suggestion() const;                  // "; did you mean \"x\"?" or ""

 private:
  std::string_view wanted_, name_;
  int limit_;
};

}  // namespace moe
