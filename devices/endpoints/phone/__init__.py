"""A recorded Android phone: the commands a host asks a phone, answered from recordings.

With :func:`install_phone`'s folder in front on the ``PATH`` of an adbd or sshd, this machine
answers ``getprop``, ``dumpsys``, ``settings``, ``cmd``, ``svc``, ``input`` and ``wm`` as a Pixel 6
Pro on Android 13 does; everything else is this machine's own.  What can be set is kept (settings,
the screen, fixed performance mode, the battery and the thermal status that ``dumpsys battery set``
and ``cmd thermalservice override-status`` fake), so that set, get and restore are tested for real.
Serial and model name the emulation, so that nobody mistakes it for a phone.

In the folder of state, one file is one value; a test may write them itself:

* ``temperature.NAME``: degrees Celsius that sensor NAME shows, cached and from the HAL.
* ``dumpsys.SERVICE``: the whole answer of ``dumpsys SERVICE``.
* ``broken.settings``, ``broken.cmd.SERVICE``, ``broken.dumpsys.SERVICE``: the command fails, saying
  this on standard error.
* ``readonly.settings``: settings can be read, and changing one fails, as on HyperOS.

*Sources* (public recordings; the serial number is replaced, the model marked):

* ``getprop``: a Pixel 6 Pro, build TQ2A.230405.003.E1, in issue 60 of badabing2005/PixelFlasher;
  what its excerpt leaves out (release, SDK, ABI, ``ro.product.model``) follows from that build.
* ``dumpsys thermalservice``: a phone of the same chip, in the tests of Skia's machine lab
  (skia.googlesource.com/buildbot, machine/go/machineserver), its cached part shortened.
* ``dumpsys battery``: pull request 4327 of google/clusterfuzz; charging over USB instead, and as
  warm as the recorded thermal service says.
* ``dumpsys power``: an AOSP image's dump, shortened to the parts that scripts read.
* ``cmd power``, its help and failure: AOSP, ``PowerManagerShellCommand.java``;
  ``cmd connectivity airplane-mode``: ``ConnectivityService.java``.
* ``settings`` that cannot be changed: a HyperOS phone in issue 4778 of Genymobile/scrcpy.
* ``settings``: names of AOSP's ``Settings.Global``, with values of a phone on a desk.
"""

from __future__ import annotations

import shutil
from pathlib import Path

#: The serial number the recorded phone gives unless told otherwise.
SERIAL = "EMULATEDPHONE1"
#: What the recorded phone answers by itself.
COMMANDS = ("getprop", "dumpsys", "settings", "cmd", "svc", "input", "wm")

_HERE = Path(__file__).parent


def install_phone(folder: Path, serial: str = SERIAL) -> Path:
    """Write the phone's programs and recordings into a folder of their own.

    Args:
        folder: made if needed.  The phone's state is kept in its ``state``, unless the environment
            of the programs names another folder as ``EDGELOOP_PHONE_STATE``.
        serial: what it gives as its serial number.

    Returns:
        The folder to put in front on the device's ``PATH``.
    """
    programs = folder / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    (folder / "state").mkdir(exist_ok=True)
    shutil.copytree(_HERE / "recorded", folder / "recorded", dirs_exist_ok=True)
    properties = folder / "recorded" / "getprop.txt"
    properties.write_text(properties.read_text().replace(SERIAL, serial))
    for name in COMMANDS:
        shutil.copyfile(_HERE / "phone.sh", programs / name)
        (programs / name).chmod(0o755)
    return programs
