"""The front's TLS certificate, which is read again when its files change.

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
    """A PEM chain, the server's own certificate first, and its key. Raises OSError, of which ssl.SSLError is a
    subclass.
    """

    def __init__(self, certificate: str, key: str) -> None:
        self._files = (certificate, key)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._load()

    async def follow(self, look_s: float = _LOOK_SECONDS) -> None:
        """Use renewed files for new connections; while they do not match each other, keep the old certificate."""
        while True:
            await asyncio.sleep(look_s)
            try:
                if self._changed() != self._loaded:
                    self._load()
                    logger.warning("the certificate in %s was read again", self._files[0])
            except OSError as error:
                logger.warning("%s cannot be read again, keeping the old certificate: %s", self._files, error)

    def _load(self) -> None:
        loaded = self._changed()
        # Into a new context first: files that do not match would leave a half-loaded one.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(*self._files, password="")
        self.context.load_cert_chain(*self._files)
        self._loaded = loaded

    def _changed(self) -> list[int]:
        return [os.stat(file).st_mtime_ns for file in self._files]


def trust_of(certificate: str) -> ssl.SSLContext:
    """For a client on the server's own machine, which has the certificate's file but not its host name."""
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate itself is sufficient
    return context
