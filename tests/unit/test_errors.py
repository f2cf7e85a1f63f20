"""Each error knows its codes, and a client can find the class that a server meant."""

import grpc
import pytest

from stillhouse import errors
from stillhouse.errors import ERROR_BY_GRPC_CODE, TEACHER_ERROR_BY_NAME, TeacherError


def teacher_errors() -> list[type[TeacherError]]:
    return [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, TeacherError) and value is not TeacherError
    ]


@pytest.mark.parametrize("error", teacher_errors(), ids=lambda error: error.__name__)
def test_every_teacher_error_has_real_codes_and_can_be_found(error: type[TeacherError]) -> None:
    assert error.grpc_code in grpc.StatusCode.__members__
    assert 400 <= error.http_status < 600
    assert TEACHER_ERROR_BY_NAME[error.__name__] is error
    assert ERROR_BY_GRPC_CODE[error.grpc_code].grpc_code == error.grpc_code
    assert error.__name__ in (errors.__doc__ or "")
