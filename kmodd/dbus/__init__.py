# SPDX-License-Identifier: LGPL-2.1-or-later
"""D-Bus without a word about modules: connection, messages, interfaces from XML, dispatch, polkit."""
