"""Front processes: several on one gRPC port before the one that holds the model.

The engine's half is `supervisor`, `front_process` and `engine_side`, the front's `front`, `front_teacher` and `engine`;
both speak by `frames`, `link`, `arena`, `faults` and `samples`. Nothing that a front imports imports torch.
"""
