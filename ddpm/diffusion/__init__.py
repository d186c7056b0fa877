"""The mathematics: schedules, the process, sampling plans and the loop that runs them.

`coordinates`, `schedules`, the samplers, `plans` and `noise` need numpy alone, because the exported sampler runs on
them; the others need torch.
"""
