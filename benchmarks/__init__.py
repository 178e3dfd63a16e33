# SPDX-License-Identifier: Apache-2.0
"""What `pytest --benchmark` runs, and `python -m benchmarks.{demo,figures,page,rows,bench_gpu*,gpu_smoke}`."""
