# SPDX-License-Identifier: Apache-2.0
"""The benchmark behind `selfattn bench`: every contender is verified, then timed in turns with the others.

`run` is the way in. A suite is a kind of workload (`workloads`, `decode`) and those who compete on it
(`peers`, `decode`, `encoders`). Nothing here is imported before somebody asks for a measurement.
"""
