"""What HTTP headers and gRPC metadata carry beside the protocol: routing key, version override and the request's id."""

import re
from typing import Final
from urllib.parse import quote

KEY: Final = "x-understudy-key"
ARM: Final = "x-understudy-version"  # "baseline" or "candidate"
REQUEST_ID: Final = "x-understudy-request-id"
_PLAIN: Final = re.compile(r"[!-$&-~]*")  # visible ASCII but %, which starts an escape
_VISIBLE: Final = "!\"#$&'()*+,/:;<=>?@[\\]^`{|}~"


def header_safe(request_id: str) -> str:
    """An id as a header's value: percent-encoded wherever it is not visible ASCII."""
    return request_id if _PLAIN.fullmatch(request_id) else quote(request_id, safe=_VISIBLE)
