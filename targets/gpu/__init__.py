"""Mobile GPUs without a GPU: the delegate run in software, its work counted and compiled, its time modelled."""
