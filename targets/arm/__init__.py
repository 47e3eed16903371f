"""An ARM64 phone without the phone: run the exported artifact under QEMU, count, and time it with LLVM's core models."""
