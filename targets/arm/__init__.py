"""An ARM64 phone without the phone: the exported artifact runs under QEMU, is counted, and timed with LLVM's models."""
