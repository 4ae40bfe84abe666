// Embeds a model: loads the MoE layers of a checkpoint and runs one batch through the first.
//   moe synth /tmp/model && 01_embed /tmp/model
#include <cstdio>
#include <vector>

#include <moe/moe.h>

int main(int argc, char** argv) {
  if (argc != 2) return std::fprintf(stderr, "usage: 01_embed CHECKPOINT\n"), 2;

  moe::Result<moe::Model> model = moe::Model::load(argv[1]);
  if (!model.ok()) return std::fprintf(stderr, "%s\n", model.status().message().data()), 1;

  const moe::LayerSpec& layer = model->layers().front();
  const moe::Dims shape = {4, layer.hidden()};
  std::vector<float> hidden(shape.elements(), 0.5f), out(shape.elements());
  moe::Status status = model->forward(layer.layer, {hidden.data(), moe::DType::f32, shape},
                                      {out.data(), moe::DType::f32, shape});
  if (!status.ok()) return std::fprintf(stderr, "%s\n", status.message().data()), 1;

  // Equal rows give equal bits.
  for (int64_t i = 0; i < shape.elements(); ++i)
    if (out[i] != out[i % layer.hidden()] || out[i] == hidden[i]) return 1;
  std::printf("layer %d: first value %g\n", layer.layer, out[0]);
}
