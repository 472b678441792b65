"""The certificate that the front shows, read again when its files have changed.

tls = Certificate("/etc/tls/chain.pem", "/etc/tls/key.pem")
tls.context                                # for a server's `ssl`
asyncio.create_task(tls.follow())
"""

import asyncio
import logging
import os
import ssl

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 60.0


class Certificate:
    """A chain in PEM, the server's own certificate first, and its key. Raises OSError; ssl.SSLError is one."""

    def __init__(self, certificate: str, key: str) -> None:
        self._files = (certificate, key)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._load()

    async def follow(self, look_s: float = _LOOK_SECONDS) -> None:
        """Take up renewed files, for connections that are made after that; while they do not fit, go on as before."""
        while True:
            await asyncio.sleep(look_s)
            try:
                if self._changed() != self._loaded:
                    self._load()
                    logger.warning("the certificate in %s was read again", self._files[0])
            except OSError as error:
                logger.warning("%s cannot be read again, going on with the old certificate: %s", self._files, error)

    def _load(self) -> None:
        loaded = self._changed()
        # Into another one first: what does not fit together would leave half of it behind.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(*self._files, password="")
        self.context.load_cert_chain(*self._files)
        self._loaded = loaded

    def _changed(self) -> list[int]:
        return [os.stat(file).st_mtime_ns for file in self._files]


def trust_of(certificate: str) -> ssl.SSLContext:
    """For a client on the server's own machine, which knows the file and not the name that it is for."""
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate itself is enough
    return context
