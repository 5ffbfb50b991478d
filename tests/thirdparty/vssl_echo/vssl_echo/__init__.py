"""Echo: tell the mean colour of a clip at a few moments from its features.

A small task that shows all a plugin needs: options, a request, a loss, state, and a hook that moves it.
"""

from vssl_core import hookimpl


@hookimpl
def vssl_objective():
    """Offer the task; torch is only imported when somebody trains with it."""
    from vssl_echo.objective import Echo

    return Echo
