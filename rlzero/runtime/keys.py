"""Keys and tokens: each goes to its own host, and never over the wire as text.

A redirect could lead a request, with its key, to any host. None is followed.
"""

import ipaddress
import os
import urllib.parse
import urllib.request

# Set to 1, keys go over plain http to any host: for a network of one's own.
ALLOW_HTTP = 'RLZERO_ALLOW_HTTP_KEY'
_HUB = 'huggingface.co'


def headers(url: str, variable: str) -> dict[str, str]:
  """The header that carries a key, or none where no key is set.

  Args:
    url: where it goes.
    variable: of the environment, which has the key.

  Raises:
    ValueError: the key would go over plain http to another machine.
  """
  key = os.environ.get(variable)
  if not key:
    return {}
  if (
    urllib.parse.urlsplit(url).scheme != 'https'
    and not is_loopback(url)
    and os.environ.get(ALLOW_HTTP) != '1'
  ):
    raise ValueError(
      f'{variable} is set, and {url} would have it over plain http, where '
      f'others can read it; use https, unset {variable}, or set {ALLOW_HTTP}=1 '
      'if the network is your own.'
    )
  return {'Authorization': f'Bearer {key}'}


def check_address(url: str) -> None:
  """Refuses an address that holds a password, which logs would show.

  Raises:
    ValueError: it does, or it names no host.
  """
  parts = urllib.parse.urlsplit(url)
  if '@' in parts.netloc:
    raise ValueError(
      f'The address of {parts.hostname} holds a user name or a password, and '
      'would be written into logs; give the key in OPENAI_API_KEY instead.'
    )
  if not parts.hostname:
    raise ValueError(f'{url} names no host; write it as http://host:8000/v1.')


def is_loopback(url: str) -> bool:
  """Whether the address is this machine."""
  return is_loopback_host(urllib.parse.urlsplit(url).hostname or '')


def is_loopback_host(host: str) -> bool:
  """Whether a host's name or address is this machine."""
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host.lower() == 'localhost'


def opener(url: str) -> urllib.request.OpenerDirector:
  """Opens requests to an address, and follows no redirect.

  This machine is asked without a proxy, which would see the key.
  """
  proxies = [urllib.request.ProxyHandler({})] if is_loopback(url) else []
  return urllib.request.build_opener(_NoRedirect, *proxies)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
  """Leaves a redirect to the caller, as an HTTPError."""

  def redirect_request(self, *_) -> None:
    return None


def hub_token(endpoint: str) -> bool | None:
  """The `token` argument for the hub library: None lets it be sent.

  Args:
    endpoint: that the library asks, another one where HF_ENDPOINT is set.
  """
  parts = urllib.parse.urlsplit(endpoint)
  return None if (parts.scheme, parts.netloc) == ('https', _HUB) else False
