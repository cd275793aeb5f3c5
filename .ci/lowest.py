"""Print the lowest versions that the metadata of gc-warm lets in, as constraints for pip."""

import re
from importlib.metadata import requires

for requirement in requires("gc-warm") or ():
    found = re.match(r"([\w.-]+)\W*(?:[^;]*,)?>=([\d.]+)", requirement.replace(" ", ""))
    if found and "extra==" not in requirement.replace(" ", ""):
        print(f"{found[1]}=={found[2]}.*")
