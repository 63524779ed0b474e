// DeepSeek-V3, output projection of attention, in BF16: no scales, one accumulator.
//
//   gemmir run examples/03_o_proj_bf16.mlir --shape M=64 --check

func.func @o_proj(%x: tensor<?x16384xbf16>, %w: tensor<16384x7168xbf16>) -> tensor<?x7168xbf16> {
  %y = gemm.matmul %x, %w : (tensor<?x16384xbf16>, tensor<16384x7168xbf16>) -> tensor<?x7168xbf16>
  func.return %y : tensor<?x7168xbf16>
}
