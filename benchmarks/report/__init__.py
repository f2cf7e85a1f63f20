"""`docs/performance.md` and its pictures, made of what the benchmarks wrote: no number is copied by hand."""
