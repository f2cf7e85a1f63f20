"""What can run a teacher: the protocol, and one module for each implementation."""

from teacher_service.backends.base import BackendDescription, HiddenRows, TeacherBackend
from teacher_service.backends.opening import open_backend

__all__ = ["BackendDescription", "HiddenRows", "TeacherBackend", "open_backend"]
