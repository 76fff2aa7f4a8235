"""The ``nitro-cli`` tool: run, describe and terminate enclaves, with errors that explain what is wrong.

Facts that shape this module (AWS Nitro Enclaves user guide, "Nitro Enclaves CLI", and the tool's issue tracker):

* Standard output is JSON, preceded by prose in some versions. Standard error is prose with codes such as ``[ E36 ]``.
  One failure prints several codes. The first is closest to the cause, except for E11, E36 and E39, which only say that
  the enclave did not start.
* Two concurrent ``run-enclave`` on one machine fail with E36 and E39. A lock file serialises our calls, and a call is
  retried in case another caller does not share the lock.
* Missing huge pages are reported as an unreadable image (E35) as often as they are reported as such (E27).
* If an enclave process does not answer, ``describe-enclaves`` prints a list of all others and fails with E39. The
  enclaves in the list exist, and there may be more.

The tool is trusted only within bounds: a limited number of bytes and seconds, JSON of the expected shape, every number
in its range. A non-zero exit status with a readable answer means:

=================  ===================================================================================================
run-enclave        the enclave may be running: it is ours if the list shows it as running
describe-enclaves  the list is not complete (`Listing.failure`)
terminate-enclave  the enclave may be gone: a complete list decides
describe-eif       nothing was measured
=================  ===================================================================================================
"""

from wgvsock.system.nitro_cli.answers import EnclaveInfo, Listing
from wgvsock.system.nitro_cli.errors import NitroCliError
from wgvsock.system.nitro_cli.tool import NitroCli, RunRequest

__all__ = ["EnclaveInfo", "Listing", "NitroCli", "NitroCliError", "RunRequest"]
