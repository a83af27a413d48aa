# SPDX-License-Identifier: LGPL-2.1-or-later
"""The commands of kmodctl, a file each or a few alike."""
