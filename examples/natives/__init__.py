"""One module for each engine that is written in C, C++ or Rust; see `examples.engines`."""
