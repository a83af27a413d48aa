# SPDX-License-Identifier: LGPL-2.1-or-later
"""kmodd-agent: brings one node of a Kubernetes cluster to what its NodeModules says, as a plain client of kmodd."""
