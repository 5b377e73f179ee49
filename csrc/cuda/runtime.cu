// Errors of the CUDA runtime, in words that say what to do.
#include "launch.cuh"

namespace fastnn::FASTNN_TARGET {

void fail(cudaError_t error, const char* what) {
  std::string message = std::string("CUDA ") + what + ": " + cudaGetErrorString(error);
  cudaGetLastError();  // an error that is not sticky must not show up again in the next call
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion) {
    int device = 0, major = 0, minor = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    message += "; GPU " + std::to_string(device) + " has compute capability " + std::to_string(major) + "." +
               std::to_string(minor) +
               ", this build of fastnn has code for " FASTNN_ARCHITECTURES ": build it with FASTNN_CUDA_ARCHITECTURES=" +
               std::to_string(major) + std::to_string(minor);
  }
  throw std::runtime_error(message);
}

}  // namespace fastnn::FASTNN_TARGET
