"""What this machine has: packages, accelerators, compilers; what `dive-fast doctor` reports."""
