import pytest

from fedsec.ring import KeyedStream, derive_key


@pytest.fixture
def stream(request):
    """A stream that is fixed for each test, so that a failure repeats; its key is printed with it."""
    key = derive_key(bytes(32), purpose="test", context=request.node.nodeid.encode())
    print(f"stream key: {key.hex()}")
    return KeyedStream(key)
