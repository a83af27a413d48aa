# kmodd: `make help` lists what there is to make.

PYTHON ?= python3
VM = $(PYTHON) -m tests.vm

.DEFAULT_GOAL := help

.PHONY: help
help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | \
		while IFS="$$(printf '\t')" read -r target text; do printf '  %-14s %s\n' "$$target" "$$text"; done

# --- the virtual machine -------------------------------------------------------------------------------------------

.PHONY: vm-deps vm-image shell test-modules
vm-deps: ## install what the virtual machine needs on this host
	@$(VM) deps

vm-image: ## build the virtual machine's image and its snapshot (kept in ~/.cache/kmodd)
	@$(VM) build

shell: ## a root shell in a fresh virtual machine with kmodd running (Debian's stock kernel, the test modules)
	@$(VM) shell --kmodd

.PHONY: demo
demo: ## a tour of kmodd in a fresh virtual machine, from nothing
	@$(PYTHON) -m tests.demo

test-modules: ## build the test modules against the virtual machine's kernel
	@$(VM) modules

# --- checking ------------------------------------------------------------------------------------------------------

VENV ?= .venv
# Files of tests that run at a time; a file stays whole, for its tests share a machine. Two are faster on two processors, and ask
# more of every time limit.
WORKERS ?= 1
PYTEST = $(VENV)/bin/python -m pytest $(if $(filter-out 1,$(WORKERS)),--numprocesses $(WORKERS) --dist loadfile)

.PHONY: setup test unit lint format coverage bench screenshots
setup: ## install what the tests need on this machine (Debian 12; as root or with sudo)
	@VENV=$(VENV) tests/setup/bootstrap

test: setup ## run every test, the virtual machine included
	@$(PYTEST)

unit: setup ## run the tests that need no virtual machine
	@$(PYTEST) -m 'not vm'

lint: setup ## run the linters alone
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy

format: setup ## bring the sources into their form
	@$(VENV)/bin/ruff format
	@$(VENV)/bin/ruff check --fix

bench: setup ## time kmodd and its gateway, in the virtual machine beside what is used today, and outside it
	@$(VENV)/bin/python -m tests.bench

screenshots: setup ## take the pictures of the README anew, in the virtual machine
	@KMODD_SCREENSHOTS=docs/screenshots $(VENV)/bin/python -m pytest -q tests/system/test_dashboard.py

coverage: setup ## run the tests that need no virtual machine, and say what they reach
	@$(VENV)/bin/coverage run -m pytest -m 'not vm'
	@$(VENV)/bin/coverage report

# --- installing ----------------------------------------------------------------------------------------------------
# For Debian 12 and newer, from the distribution's own packages. A package build sets DESTDIR and PREFIX=/usr.

# What was not installed by the package manager belongs below /usr/local: man, bash, zsh, systemd and journald look there too.
PREFIX ?= /usr/local
# polkit and the bus read descriptions of services from /usr/share alone, whatever the prefix; so does fish its completions,
# where no desktop sets XDG_DATA_DIRS.
SHAREDIR ?= /usr/share
DESTDIR ?=
# The interpreter of the distribution, whose libraries are used: never the one of a virtual environment.
SYSTEM_PYTHON ?= /usr/bin/python3

PKGDIR = $(PREFIX)/lib/kmodd
MANIFEST = $(PKGDIR)/directories
UNITDIR = $(PREFIX)/lib/systemd/system
USERUNITDIR = $(PREFIX)/lib/systemd/user
SYSUSERSDIR = $(PREFIX)/lib/sysusers.d
CATALOGDIR = $(PREFIX)/lib/systemd/catalog
MANDIR = $(PREFIX)/share/man
DOCDIR = $(PREFIX)/share/doc/kmodd
BASHDIR = $(PREFIX)/share/bash-completion/completions
ZSHDIR = $(PREFIX)/share/zsh/site-functions
FISHDIR = $(SHAREDIR)/fish/vendor_completions.d

RUNTIME_PACKAGES = python3 python3-dbus-next python3-systemd python3-pyudev python3-structlog libkmod2 dbus polkitd udev
PROGRAMS = kmodd kmodctl kmodd-notifier
# Of a logged-in user; everything else is the system's.
USERUNITS = kmodd-desktop-notify.service
# Of the HTTP gateway, which wants libraries that nothing else needs: make install-gateway.
GATEWAYUNITS = kmodd-gateway.service kmodd-gateway.socket
GATEWAY_PACKAGES = python3-fastapi python3-uvicorn python3-prometheus-client python3-jwt python3-cryptography
DOCS = polkit/examples/50-netadm-dummy.rules
GATEWAYDOCS = docs/grafana.json docs/alerts.yml polkit/examples/50-kmodd-gateway-modules.rules
UNITS = $(filter-out $(USERUNITS) $(GATEWAYUNITS),$(patsubst systemd/%.in,%,$(wildcard systemd/*.in)))
MODULES = $(shell find kmodd -type f \( -name '*.py' -o -path 'kmodd/gateway/static/*' \))
FILL_IN = sed -e "s,@PKGDIR@,$(PKGDIR),g" -e "s,@BINDIR@,$(PREFIX)/bin,g" -e "s,@PYTHON@,$(SYSTEM_PYTHON),g" \
	-e "s,@DOCDIR@,$(DOCDIR),g"
# There is a machine to tell: not below a DESTDIR, not in a chroot or a container without systemd.
LIVE = [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]

INSTALLED = $(addprefix $(PREFIX)/bin/,$(PROGRAMS)) $(addprefix $(UNITDIR)/,$(UNITS)) $(CATALOGDIR)/kmodd.catalog \
	$(SHAREDIR)/dbus-1/interfaces/org.kmodd1.xml $(SHAREDIR)/dbus-1/system.d/org.kmodd1.conf \
	$(SHAREDIR)/dbus-1/system-services/org.kmodd1.service $(SHAREDIR)/polkit-1/actions/org.kmodd1.policy \
	$(addprefix $(USERUNITDIR)/,$(USERUNITS)) $(SYSUSERSDIR)/kmodd-notifier.conf \
	$(SHAREDIR)/dbus-1/interfaces/org.kmodd1.Notifier.xml $(SHAREDIR)/dbus-1/system.d/org.kmodd1.Notifier.conf \
	$(SHAREDIR)/dbus-1/system-services/org.kmodd1.Notifier.service \
	$(SHAREDIR)/polkit-1/rules.d/50-kmodd-notifier.rules $(MANDIR)/man5/notify.toml.5.gz $(MANDIR)/man8/kmodd-notifier.8.gz \
	$(MANDIR)/man1/kmodctl.1.gz $(MANDIR)/man5/org.kmodd1.5.gz \
	$(MANDIR)/man5/kmodd.toml.5.gz $(MANDIR)/man5/kmodd-modules.d.5.gz $(MANDIR)/man8/kmodd.8.gz \
	$(BASHDIR)/kmodctl $(ZSHDIR)/_kmodctl $(FISHDIR)/kmodctl.fish $(addprefix $(DOCDIR)/,$(notdir $(DOCS)))

INSTALLED_GATEWAY = $(PREFIX)/bin/kmodd-gateway $(addprefix $(UNITDIR)/,$(GATEWAYUNITS)) $(SYSUSERSDIR)/kmodd-gateway.conf \
	$(SHAREDIR)/polkit-1/rules.d/90-kmodd-gateway.rules \
	$(MANDIR)/man8/kmodd-gateway.8.gz $(MANDIR)/man5/kmodd-gateway.toml.5.gz \
	$(addprefix $(DOCDIR)/,$(notdir $(GATEWAYDOCS)))

.PHONY: install-deps install-check install install-gateway-deps install-gateway uninstall
install-deps: ## install the Debian packages kmodd needs to run
	apt-get update
	apt-get install -y --no-install-recommends $(RUNTIME_PACKAGES)

install-check:
	@! { $(LIVE); } || case "$(PREFIX)" in /usr|/usr/local) ;; *) \
		echo "systemd finds units below /usr and /usr/local alone, not in $(PREFIX). A package build sets DESTDIR." >&2; \
		exit 1 ;; esac
	@[ -n "$(DESTDIR)" ] || $(SYSTEM_PYTHON) -I install/check_dependencies.py || { \
		echo "kmodd cannot run here yet. As root: make install-deps" >&2; exit 1; }
	@! { $(LIVE); } || [ "$$(id -u)" = 0 ] || { echo "Installing needs root: sudo make install" >&2; exit 1; }

install: install-check ## install into PREFIX (below DESTDIR) and tell systemd, the bus and polkit
	@install/remember-directories "$(DESTDIR)" $(MANIFEST) $(PKGDIR) $(sort $(dir $(INSTALLED)))
	@rm -rf $(DESTDIR)$(PKGDIR)/kmodd $(DESTDIR)$(PKGDIR)/dbus
	@$(foreach folder,$(sort $(dir $(MODULES))),install -D -m 0644 -t $(DESTDIR)$(PKGDIR)/$(folder) \
		$(foreach file,$(MODULES),$(if $(filter $(folder),$(dir $(file))),$(file))) &&) true
	@install -D -m 0644 -t $(DESTDIR)$(PKGDIR)/dbus dbus/org.kmodd1.xml dbus/org.kmodd1.Notifier.xml
	@$(SYSTEM_PYTHON) -m compileall -q -j 0 -s "$(DESTDIR)" $(DESTDIR)$(PKGDIR)/kmodd
	@mkdir -p $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(UNITDIR) $(DESTDIR)$(USERUNITDIR)
	@for name in $(PROGRAMS); do $(FILL_IN) bin/$$name.in > $(DESTDIR)$(PREFIX)/bin/$$name || exit 1; done
	@chmod 0755 $(addprefix $(DESTDIR)$(PREFIX)/bin/,$(PROGRAMS))
	@for unit in $(UNITS); do $(FILL_IN) systemd/$$unit.in > $(DESTDIR)$(UNITDIR)/$$unit || exit 1; done
	@chmod 0644 $(addprefix $(DESTDIR)$(UNITDIR)/,$(UNITS))
	@for unit in $(USERUNITS); do $(FILL_IN) systemd/$$unit.in > $(DESTDIR)$(USERUNITDIR)/$$unit || exit 1; done
	@chmod 0644 $(addprefix $(DESTDIR)$(USERUNITDIR)/,$(USERUNITS))
	@install -D -m 0644 systemd/kmodd-notifier.sysusers $(DESTDIR)$(SYSUSERSDIR)/kmodd-notifier.conf
	@install -D -m 0644 systemd/kmodd.catalog $(DESTDIR)$(CATALOGDIR)/kmodd.catalog
	@install -D -m 0644 dbus/org.kmodd1.xml $(DESTDIR)$(SHAREDIR)/dbus-1/interfaces/org.kmodd1.xml
	@install -D -m 0644 -t $(DESTDIR)$(SHAREDIR)/dbus-1/interfaces dbus/org.kmodd1.Notifier.xml
	@install -D -m 0644 -t $(DESTDIR)$(SHAREDIR)/dbus-1/system.d dbus/org.kmodd1.Notifier.conf
	@install -D -m 0644 -t $(DESTDIR)$(SHAREDIR)/dbus-1/system-services dbus/org.kmodd1.Notifier.service
	@install -D -m 0644 polkit/kmodd-notifier.rules $(DESTDIR)$(SHAREDIR)/polkit-1/rules.d/50-kmodd-notifier.rules
	@install -D -m 0644 dbus/org.kmodd1.conf $(DESTDIR)$(SHAREDIR)/dbus-1/system.d/org.kmodd1.conf
	@install -D -m 0644 dbus/org.kmodd1.service $(DESTDIR)$(SHAREDIR)/dbus-1/system-services/org.kmodd1.service
	@install -D -m 0644 polkit/org.kmodd1.policy $(DESTDIR)$(SHAREDIR)/polkit-1/actions/org.kmodd1.policy
	@mkdir -p $(addprefix $(DESTDIR)$(MANDIR)/,man1 man5 man8)
	@gzip -9nc docs/kmodctl.1 > $(DESTDIR)$(MANDIR)/man1/kmodctl.1.gz
	@gzip -9nc docs/kmodd-notifier.8 > $(DESTDIR)$(MANDIR)/man8/kmodd-notifier.8.gz
	@gzip -9nc docs/notify.toml.5 > $(DESTDIR)$(MANDIR)/man5/notify.toml.5.gz
	@gzip -9nc docs/kmodd.toml.5 > $(DESTDIR)$(MANDIR)/man5/kmodd.toml.5.gz
	@gzip -9nc docs/kmodd-modules.d.5 > $(DESTDIR)$(MANDIR)/man5/kmodd-modules.d.5.gz
	@$(FILL_IN) docs/kmodd.8 | gzip -9nc > $(DESTDIR)$(MANDIR)/man8/kmodd.8.gz
	@$(SYSTEM_PYTHON) -I docs/org_kmodd1.py dbus/org.kmodd1.xml > $(DESTDIR)$(MANDIR)/man5/org.kmodd1.5
	@gzip -9nf $(DESTDIR)$(MANDIR)/man5/org.kmodd1.5
	@install -D -m 0644 docs/completion/kmodctl.bash $(DESTDIR)$(BASHDIR)/kmodctl
	@install -D -m 0644 docs/completion/_kmodctl $(DESTDIR)$(ZSHDIR)/_kmodctl
	@install -D -m 0644 docs/completion/kmodctl.fish $(DESTDIR)$(FISHDIR)/kmodctl.fish
	@install -D -m 0644 -t $(DESTDIR)$(DOCDIR) $(DOCS)
	@! { $(LIVE); } || install/after-install
	@echo "kmodd is installed in $(DESTDIR)$(PREFIX)"

install-gateway-deps: ## install the Debian packages the HTTP gateway needs
	apt-get update
	apt-get install -y --no-install-recommends $(GATEWAY_PACKAGES)

install-gateway: install ## install kmodd and its HTTP gateway; an administrator makes a token and starts it
	@[ -n "$(DESTDIR)" ] || $(SYSTEM_PYTHON) -I -c 'import fastapi, prometheus_client, uvicorn' 2>/dev/null || { \
		echo "The gateway cannot run here yet. As root: make install-gateway-deps" >&2; exit 1; }
	@install/remember-directories "$(DESTDIR)" $(MANIFEST) $(PKGDIR) $(sort $(dir $(INSTALLED) $(INSTALLED_GATEWAY)))
	@mkdir -p $(sort $(dir $(addprefix $(DESTDIR),$(INSTALLED_GATEWAY))))
	@$(FILL_IN) bin/kmodd-gateway.in > $(DESTDIR)$(PREFIX)/bin/kmodd-gateway
	@chmod 0755 $(DESTDIR)$(PREFIX)/bin/kmodd-gateway
	@for unit in $(GATEWAYUNITS); do $(FILL_IN) systemd/$$unit.in > $(DESTDIR)$(UNITDIR)/$$unit || exit 1; done
	@chmod 0644 $(addprefix $(DESTDIR)$(UNITDIR)/,$(GATEWAYUNITS))
	@install -m 0644 systemd/kmodd-gateway.sysusers $(DESTDIR)$(SYSUSERSDIR)/kmodd-gateway.conf
	@install -m 0644 polkit/kmodd-gateway.rules $(DESTDIR)$(SHAREDIR)/polkit-1/rules.d/90-kmodd-gateway.rules
	@gzip -9nc docs/kmodd-gateway.8 > $(DESTDIR)$(MANDIR)/man8/kmodd-gateway.8.gz
	@gzip -9nc docs/kmodd-gateway.toml.5 > $(DESTDIR)$(MANDIR)/man5/kmodd-gateway.toml.5.gz
	@install -m 0644 -t $(DESTDIR)$(DOCDIR) $(GATEWAYDOCS)
	@! { $(LIVE); } || install/after-install-gateway
	@echo "The gateway is installed. kmodctl token create NAME --scope read; systemctl enable --now kmodd-gateway.socket"

uninstall: ## stop kmodd and remove everything that install and the daemon brought, its state included
	@! { $(LIVE); } || systemctl disable --now --quiet kmodd.service kmodd-notifier.service \
		kmodd-gateway.socket kmodd-gateway.service 2>/dev/null || true
	@rm -rf $(DESTDIR)$(PKGDIR)/kmodd $(DESTDIR)$(PKGDIR)/dbus
	@rm -f $(addprefix $(DESTDIR),$(INSTALLED) $(INSTALLED_GATEWAY))
	@made=$$(cat $(DESTDIR)$(MANIFEST) 2>/dev/null); rm -f $(DESTDIR)$(MANIFEST); for directory in $$made; do \
		[ ! -d $(DESTDIR)$$directory ] || rmdir --ignore-fail-on-non-empty $(DESTDIR)$$directory; done
	@! { $(LIVE); } || install/after-uninstall
	@echo "kmodd is removed from $(DESTDIR)$(PREFIX)"
