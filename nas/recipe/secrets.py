"""Hides secrets in texts that are printed or stored: passwords and tokens in URLs."""

from __future__ import annotations

import re
from urllib.parse import unquote

SECRET = r"[^=&?#\s]*(?:pass|pwd|token|secret|key|auth|cred|sig)[^=&?#\s]*"


def without_secrets(text: str) -> str:
    """A text without the user's part of URLs (but a name before a password), and without values of secret parameters.

    Examples:
        >>> without_secrets("postgresql://nas:pw@host/db?sslpassword=pw&x=1")
        'postgresql://nas:***@host/db?sslpassword=***&x=1'
        >>> without_secrets("https://token@host/x")
        'https://***@host/x'
    """
    text = re.sub(r"(://[^:/@\s'\"`]*):[^\s'\"`]*@", r"\1:***@", text)
    text = re.sub(r"://[^:/@\s'\"`]+@", "://***@", text)
    return re.sub(rf"([?&](?:{SECRET})=)[^&#\s'\"`]*", r"\1***", text, flags=re.IGNORECASE)


def secrets_of(url: str) -> list[str]:
    """The secrets that `without_secrets` hides in a URL, decoded and not, longest first."""
    user = re.match(r"[^:/]*://([^:/@]*)(?::(.*))?@", url)
    found = [] if user is None else [user[2] or user[1]]
    found += re.findall(rf"[?&](?:{SECRET})=([^&#]*)", url, flags=re.IGNORECASE)
    return sorted({text for each in found if each for text in (each, unquote(each))}, key=len, reverse=True)
