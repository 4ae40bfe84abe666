// What the tensors of a packed module are called behind the module's name.
#pragma once

#include <string>
#include <string_view>

#include "quant/packed.h"
#include "quant/roles.h"

namespace moe {

struct PackedNames {
  std::string_view values, scales, zeros, groups;
  std::string_view extents;  // of the matrix, [outputs, inputs]; "": not stored
  bool transposed;           // scales are (groups, outputs)

  std::string_view of(Role role) const {
    switch (role) {
      case Role::scale: return scales;
      case Role::zero: return zeros;
      case Role::group: return groups;
      default: return values;
    }
  }
};

// Of any packing but none.
inline const PackedNames& packed_names(Packing packing) {
  static constexpr PackedNames kQweight = {".qweight", ".scales", ".qzeros", ".g_idx", "", true};
  static constexpr PackedNames kCompressed = {".weight_packed",     ".weight_scale",
                                              ".weight_zero_point", ".weight_g_idx",
                                              ".weight_shape",      false};
  return packing == Packing::compressed ? kCompressed : kQweight;
}

inline constexpr std::string_view kWeight = ".weight";  // what such names stand in for

// "x.weight" becomes "x" and `suffix`.
inline void rename_weight(std::string_view suffix, std::string* name) {
  if (name->ends_with(kWeight)) name->resize(name->size() - kWeight.size());
  name->append(suffix);
}

}  // namespace moe
