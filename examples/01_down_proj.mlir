// DeepSeek-V3, down projection of an expert: y = x @ w, FP8 with block-wise scales, for any number of tokens.
//
//   gemmir explain examples/01_down_proj.mlir
//   gemmir compile examples/01_down_proj.mlir --emit cuda
//   gemmir run     examples/01_down_proj.mlir --shape M=64 --check

func.func @down_proj(%x: tensor<?x2048xf8E4M3FN>, %xs: tensor<?x16xf32>,
                     %w: tensor<2048x7168xf8E4M3FN>, %ws: tensor<16x56xf32>) -> tensor<?x7168xbf16> {
  %y = gemm.matmul %x, %w scaled (%xs by 1x128, %ws by 128x128)
    : (tensor<?x2048xf8E4M3FN>, tensor<2048x7168xf8E4M3FN>, tensor<?x16xf32>, tensor<16x56xf32>) -> tensor<?x7168xbf16>
  func.return %y : tensor<?x7168xbf16>
}
