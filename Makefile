# kmodd: `make help` lists what there is to make.

PYTHON ?= python3
VM = $(PYTHON) -m tests.vm
# The virtual machine's Debian, SUITE=bookworm (the default), trixie or sid, is read from the environment by tests/vm/suite.py.

.DEFAULT_GOAL := help

.PHONY: help
help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | \
		while IFS="$$(printf '\t')" read -r target text; do printf '  %-14s %s\n' "$$target" "$$text"; done

# --- the virtual machine -------------------------------------------------------------------------------------------

.PHONY: vm-deps vm-image shell test-modules
vm-deps: ## install the packages that the virtual machine needs on this host
	@$(VM) deps

vm-image: ## build the virtual machine's image and its snapshot (kept in ~/.cache/kmodd)
	@$(VM) build

shell: ## a root shell in a fresh virtual machine with kmodd running (Debian's stock kernel, the test modules)
	@$(VM) shell --kmodd

.PHONY: demo demo-fleet
demo: ## a tour of kmodd in a fresh virtual machine
	@$(PYTHON) -m tests.demo

demo-fleet: setup ## a tour of the fleet by kubectl, on a real API server; the nodes' kernel is simulated
	@$(VENV)/bin/python -m tests.demo.fleet

test-modules: ## build the test modules against the virtual machine's kernel
	@$(VM) modules

# --- checking ------------------------------------------------------------------------------------------------------

VENV ?= .venv
# Files of tests that run at a time, in the order of tests/conftest.py; a file stays whole, for its tests share a machine. An emulated
# machine keeps a processor busy: more at a time than there are processors only makes each slower.
WORKERS ?= 2
PYTEST = $(VENV)/bin/python -m pytest \
	$(if $(filter-out 1,$(WORKERS)),--numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder)

.PHONY: setup test unit lint format coverage bench bench-fleet conformance compactions screenshots
setup: ## install what the tests need on this machine (Debian 12; as root or with sudo)
	@VENV=$(VENV) tests/setup/bootstrap

test: setup ## run every test, the virtual machine included
	@$(PYTEST)

unit: setup ## run the tests that need no virtual machine
	@$(PYTEST) -m 'not vm'

lint: setup ## run only the linters
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy

format: setup ## format the sources
	@$(VENV)/bin/ruff format
	@$(VENV)/bin/ruff check --fix

bench: setup ## measure kmodd and its gateway, in the virtual machine next to modprobe, and outside it
	@$(VENV)/bin/python -m tests.bench

NODES ?= 100
REST ?= 660
bench-fleet: setup ## time the fleet on a real API server: NODES agents (100), whose kernel and bus are simulated, and REST seconds of rest (660)
	@$(VENV)/bin/python -m tests.bench.fleet $(NODES) --rest $(REST)

conformance: setup ## compare kmodd with modprobe (of Debian 12 and 13) on a hundred thousand random requests, without the virtual machine
	@$(VENV)/bin/python -m tests.conformance

COMPACTIONS ?= 1000
compactions: setup ## delete objects while the fleet's watches are cut off and etcd is compacted, a thousand times (COMPACTIONS)
	@$(VENV)/bin/python -m tests.fleet.compactions $(COMPACTIONS)

screenshots: setup ## take the documentation's screenshots, in the virtual machine
	@KMODD_SCREENSHOTS=docs/screenshots $(VENV)/bin/python -m pytest -q tests/system/test_dashboard.py tests/system/test_cockpit.py

coverage: setup ## run the tests that need no virtual machine, and list the ten files with the lowest coverage
	@$(VENV)/bin/coverage run -m pytest -q -m 'not vm' --ignore tests/architecture
	@$(VENV)/bin/coverage report --sort=cover | sed -n '1,12p; /^TOTAL/p'

# --- packages ------------------------------------------------------------------------------------------------------

# What the packages are built from, so that nothing else in a working tree can change them.
PACKAGED = CHANGELOG.md LICENSE Makefile README.md bin cockpit dbus debian docs install kmodd polkit pyproject.toml systemd
# Absolute, or below this directory.
DEBS ?= dist
DEB_BUILD ?= build/deb
# Of the packages, in place of the one in debian/changelog: 0.2.0~rc1.
DEB_VERSION ?=

.PHONY: deb
deb: ## build the Debian packages into dist/ (needs: apt-get build-dep ./)
	@rm -rf $(DEB_BUILD)/kmodd && mkdir -p $(DEB_BUILD)/kmodd $(DEBS)
	@tar -cf - --exclude=__pycache__ --exclude=docs/screenshots $(PACKAGED) | tar -C $(DEB_BUILD)/kmodd -xf -
	@[ -z "$(DEB_VERSION)" ] || sed -i '1s/(.*)/($(DEB_VERSION))/' $(DEB_BUILD)/kmodd/debian/changelog
	@cd $(DEB_BUILD)/kmodd && dpkg-buildpackage -us -uc -b >../build.log 2>&1 || { tail -n 40 ../build.log >&2; exit 1; }
	@mv $(DEB_BUILD)/*.deb $(DEB_BUILD)/*.changes $(DEB_BUILD)/*.buildinfo $(DEBS)/
	@sed -n 's,^\(.*\.deb\) .*,$(DEBS)/\1,p' $(DEB_BUILD)/kmodd/debian/files

# --- installing ----------------------------------------------------------------------------------------------------
# For distributions without a package of kmodd; on Debian, `make deb`. A package build sets DESTDIR and PREFIX=/usr.

# What was not installed by the package manager belongs below /usr/local: man, bash, zsh, systemd and journald look there too.
PREFIX ?= /usr/local
# polkit and the bus read descriptions of services from /usr/share alone, whatever the prefix; so does fish its completions,
# where no desktop sets XDG_DATA_DIRS.
SHAREDIR ?= /usr/share
DESTDIR ?=
# The interpreter of the distribution, whose libraries are used: never the one of a virtual environment.
SYSTEM_PYTHON ?= /usr/bin/python3

COMPLETION = $(SYSTEM_PYTHON) -IB docs/completion.py
# Manual pages, such as kmodd.8; written by `make man`, which needs scdoc, and org.kmodd1(5) from the XML.
PAGES = $(patsubst docs/man/%.scd,%,$(wildcard docs/man/*.scd))
BUILT_PAGES = $(addprefix build/man/,$(PAGES))
INSTALL_PAGES = for page in $(1); do $(FILL_IN) build/man/$$page | gzip -9nc \
	> $(DESTDIR)$(MANDIR)/man$${page$(hash)$(hash)*.}/$$page.gz || exit 1; done
hash := \#

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

BUILD_PACKAGES = scdoc
RUNTIME_PACKAGES = python3 python3-dbus-next python3-systemd python3-pyudev python3-structlog libkmod2 dbus polkitd udev
PROGRAMS = kmodd kmodctl kmodd-notifier
# Of a logged-in user; everything else is the system's.
USERUNITS = kmodd-desktop-notify.service
# Of the HTTP gateway, which needs further libraries: make install-gateway.
GATEWAYUNITS = kmodd-gateway.service kmodd-gateway.socket
GATEWAY_PACKAGES = python3-fastapi python3-uvicorn python3-prometheus-client python3-jwt python3-cryptography
DOCS = polkit/examples/50-netadm-dummy.rules
GATEWAYDOCS = docs/grafana.json docs/alerts.yml docs/kmodd-gateway-loopback.conf polkit/examples/50-kmodd-gateway-modules.rules
# Of the cluster's agent, which needs a library that Debian does not have: make install-agent.
AGENTUNITS = kmodd-agent.service
AGENTDOCS = deploy/kubernetes/node/50-kmodd-agent.rules
# Of the page in Cockpit, with the views that it shares with the dashboard: make install-cockpit.
COCKPITDIR = $(PREFIX)/share/cockpit/kmodd
METAINFODIR = $(PREFIX)/share/metainfo
COCKPITPAGE = $(filter-out %.xml,$(wildcard cockpit/*))
COCKPITVIEWS = $(wildcard kmodd/gateway/static/dashboard/shared/*)
UNITS = $(filter-out $(USERUNITS) $(GATEWAYUNITS) $(AGENTUNITS),$(patsubst systemd/%.in,%,$(wildcard systemd/*.in)))
# The API's XML among them, which its server and its clients read.
MODULES := $(shell find kmodd -type f \( -name '*.py' -o -name py.typed -o -path 'kmodd/gateway/static/*' \)) $(wildcard dbus/*.xml)
# Records of vulnerabilities, which `kmodctl respond` reads; /etc/kmodd/responses.d masks and adds to them.
RESPONSES := $(wildcard install/responses.d/*.toml)
PROFILES := $(wildcard install/surface.d/*.toml)
# Bytecode for this machine's interpreter; Debian's packages are compiled where they are installed.
BYTECODE ?= yes
FILL_IN = sed -e "s,@PKGDIR@,$(PKGDIR),g" -e "s,@BINDIR@,$(PREFIX)/bin,g" -e "s,@PYTHON@,$(SYSTEM_PYTHON),g" \
	-e "s,@DOCDIR@,$(DOCDIR),g"
# There is a machine to tell: not below a DESTDIR, not in a chroot or a container without systemd.
LIVE = [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]

# The profiles of every process, the gateway's too: they do nothing until a unit names them.
APPARMOR = $(if $(filter /usr /usr/local,$(PREFIX)),,$(PREFIX))/etc/apparmor.d/kmodd
# Debian 12 has none, and the daemon, which may write one file in it, may not make it.
DEPMODDIR = $(if $(filter /usr /usr/local,$(PREFIX)),,$(PREFIX))/etc/depmod.d
# Both run it after a kernel is installed: Debian's packages of kernels, and kernel-install(8).
KERNELHOOK = $(if $(filter /usr /usr/local,$(PREFIX)),,$(PREFIX))/etc/kernel/postinst.d/zz-kmodd-surface
KERNELPLUGIN = $(PREFIX)/lib/kernel/install.d/95-kmodd-surface.install
INSTALLED_PAGES = $(foreach page,$(1),$(MANDIR)/man$(subst .,,$(suffix $(page)))/$(page).gz)
INSTALLED = $(APPARMOR) $(addprefix $(PREFIX)/bin/,$(PROGRAMS)) $(addprefix $(UNITDIR)/,$(UNITS)) $(CATALOGDIR)/kmodd.catalog \
	$(addprefix $(PKGDIR)/surface.d/,$(notdir $(PROFILES))) $(KERNELHOOK) $(KERNELPLUGIN) \
	$(addprefix $(PKGDIR)/responses.d/,$(notdir $(RESPONSES))) \
	$(SHAREDIR)/dbus-1/interfaces/org.kmodd1.xml $(SHAREDIR)/dbus-1/system.d/org.kmodd1.conf \
	$(SHAREDIR)/dbus-1/system-services/org.kmodd1.service $(SHAREDIR)/polkit-1/actions/org.kmodd1.policy \
	$(addprefix $(USERUNITDIR)/,$(USERUNITS)) $(SYSUSERSDIR)/kmodd-notifier.conf \
	$(SHAREDIR)/dbus-1/interfaces/org.kmodd1.Notifier.xml $(SHAREDIR)/dbus-1/system.d/org.kmodd1.Notifier.conf \
	$(SHAREDIR)/dbus-1/system-services/org.kmodd1.Notifier.service \
	$(SHAREDIR)/polkit-1/rules.d/50-kmodd-notifier.rules \
	$(call INSTALLED_PAGES,org.kmodd1.5 $(filter-out kmodd-gateway% kmodd-agent%,$(PAGES))) \
	$(BASHDIR)/kmodctl $(ZSHDIR)/_kmodctl $(FISHDIR)/kmodctl.fish $(addprefix $(DOCDIR)/,$(notdir $(DOCS)))

INSTALLED_GATEWAY = $(PREFIX)/bin/kmodd-gateway $(addprefix $(UNITDIR)/,$(GATEWAYUNITS)) $(SYSUSERSDIR)/kmodd-gateway.conf \
	$(SHAREDIR)/polkit-1/rules.d/90-kmodd-gateway.rules \
	$(call INSTALLED_PAGES,$(filter kmodd-gateway%,$(PAGES))) \
	$(addprefix $(DOCDIR)/,$(notdir $(GATEWAYDOCS)))

INSTALLED_COCKPIT = $(addprefix $(COCKPITDIR)/,$(notdir $(COCKPITPAGE))) \
	$(addprefix $(COCKPITDIR)/shared/,$(notdir $(COCKPITVIEWS))) $(METAINFODIR)/org.kmodd.cockpit.metainfo.xml

INSTALLED_AGENT = $(PREFIX)/bin/kmodd-agent $(addprefix $(UNITDIR)/,$(AGENTUNITS)) $(SYSUSERSDIR)/kmodd-agent.conf \
	$(call INSTALLED_PAGES,$(filter kmodd-agent%,$(PAGES))) $(addprefix $(DOCDIR)/,$(notdir $(AGENTDOCS)))

.PHONY: man
man: $(BUILT_PAGES) ## write the manual pages into build/man, with scdoc

# The date of a page is that of its source. groff would print a hyphen, which no shell takes for a minus. The first line of a page
# with tables asks for tbl (man(1), PREPROCESSORS).
build/man/%: docs/man/%.scd
	@command -v scdoc >/dev/null || { echo "The manual pages need scdoc. As root: make install-deps" >&2; exit 1; }
	@mkdir -p $(@D)
	@SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(date -r $< +%s)} scdoc < $< > $@.$$$$ && \
		{ ! grep -q '^\.TS' $@.$$$$ || printf "%s\\n" "'\\\" t"; \
		sed -e "/^[.']\|^.h'/!{s/\\\\-/-/g;s/-/\\\\-/g}" $@.$$$$; } > $@.$$$$.new && rm $@.$$$$ && mv $@.$$$$.new $@

.PHONY: install-deps install-check install install-gateway-deps install-gateway install-cockpit install-agent-deps install-agent uninstall
install-deps: ## install the Debian packages kmodd needs to run
	apt-get update
	apt-get install -y --no-install-recommends $(RUNTIME_PACKAGES) $(BUILD_PACKAGES)

install-check:
	@! { $(LIVE); } || case "$(PREFIX)" in /usr|/usr/local) ;; *) \
		echo "systemd finds units below /usr and /usr/local alone, not in $(PREFIX). A package build sets DESTDIR." >&2; \
		exit 1 ;; esac
	@[ -n "$(DESTDIR)" ] || $(SYSTEM_PYTHON) -I install/check_dependencies.py || { \
		echo "kmodd cannot run here yet. As root: make install-deps" >&2; exit 1; }
	@! { $(LIVE); } || [ "$$(id -u)" = 0 ] || { echo "Installing needs root: sudo make install" >&2; exit 1; }

install: install-check man ## install into PREFIX (below DESTDIR) and notify systemd, D-Bus and polkit
	@install/remember-directories "$(DESTDIR)" $(MANIFEST) $(PKGDIR) $(DEPMODDIR) $(sort $(dir $(INSTALLED)))
	@rm -rf $(DESTDIR)$(PKGDIR)/kmodd $(DESTDIR)$(PKGDIR)/dbus
	@$(foreach folder,$(sort $(dir $(MODULES))),install -D -m 0644 -t $(DESTDIR)$(PKGDIR)/$(folder) \
		$(foreach file,$(MODULES),$(if $(filter $(folder),$(dir $(file))),$(file))) &&) true
	@[ "$(BYTECODE)" = no ] || $(SYSTEM_PYTHON) -m compileall -q -j 0 -s "$(DESTDIR)" $(DESTDIR)$(PKGDIR)/kmodd
	@mkdir -p $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(UNITDIR) $(DESTDIR)$(USERUNITDIR)
	@for name in $(PROGRAMS); do $(FILL_IN) bin/$$name.in > $(DESTDIR)$(PREFIX)/bin/$$name || exit 1; done
	@chmod 0755 $(addprefix $(DESTDIR)$(PREFIX)/bin/,$(PROGRAMS))
	@for unit in $(UNITS); do $(FILL_IN) systemd/$$unit.in > $(DESTDIR)$(UNITDIR)/$$unit || exit 1; done
	@chmod 0644 $(addprefix $(DESTDIR)$(UNITDIR)/,$(UNITS))
	@for unit in $(USERUNITS); do $(FILL_IN) systemd/$$unit.in > $(DESTDIR)$(USERUNITDIR)/$$unit || exit 1; done
	@chmod 0644 $(addprefix $(DESTDIR)$(USERUNITDIR)/,$(USERUNITS))
	@mkdir -p $(DESTDIR)$(dir $(APPARMOR)) $(DESTDIR)$(DEPMODDIR)
	@$(FILL_IN) install/apparmor/kmodd.in > $(DESTDIR)$(APPARMOR)
	@chmod 0644 $(DESTDIR)$(APPARMOR)
	@install -D -m 0644 -t $(DESTDIR)$(PKGDIR)/responses.d $(RESPONSES)
	@install -D -m 0644 systemd/kmodd-notifier.sysusers $(DESTDIR)$(SYSUSERSDIR)/kmodd-notifier.conf
	@install -D -m 0644 systemd/kmodd.catalog $(DESTDIR)$(CATALOGDIR)/kmodd.catalog
	@install -D -m 0644 dbus/org.kmodd1.xml $(DESTDIR)$(SHAREDIR)/dbus-1/interfaces/org.kmodd1.xml
	@install -D -m 0755 install/kernel-hook $(DESTDIR)$(KERNELHOOK)
	@install -D -m 0755 install/kernel-hook $(DESTDIR)$(KERNELPLUGIN)
	@install -D -m 0644 -t $(DESTDIR)$(PKGDIR)/surface.d $(PROFILES)
	@install -D -m 0644 -t $(DESTDIR)$(SHAREDIR)/dbus-1/interfaces dbus/org.kmodd1.Notifier.xml
	@install -D -m 0644 -t $(DESTDIR)$(SHAREDIR)/dbus-1/system.d dbus/org.kmodd1.Notifier.conf
	@install -D -m 0644 -t $(DESTDIR)$(SHAREDIR)/dbus-1/system-services dbus/org.kmodd1.Notifier.service
	@install -D -m 0644 polkit/kmodd-notifier.rules $(DESTDIR)$(SHAREDIR)/polkit-1/rules.d/50-kmodd-notifier.rules
	@install -D -m 0644 dbus/org.kmodd1.conf $(DESTDIR)$(SHAREDIR)/dbus-1/system.d/org.kmodd1.conf
	@install -D -m 0644 dbus/org.kmodd1.service $(DESTDIR)$(SHAREDIR)/dbus-1/system-services/org.kmodd1.service
	@install -D -m 0644 polkit/org.kmodd1.policy $(DESTDIR)$(SHAREDIR)/polkit-1/actions/org.kmodd1.policy
	@mkdir -p $(addprefix $(DESTDIR)$(MANDIR)/,man1 man5 man8)
	@$(call INSTALL_PAGES,$(filter-out kmodd-gateway% kmodd-agent%,$(PAGES)))
	@$(SYSTEM_PYTHON) -I docs/org_kmodd1.py dbus/org.kmodd1.xml > $(DESTDIR)$(MANDIR)/man5/org.kmodd1.5
	@gzip -9nf $(DESTDIR)$(MANDIR)/man5/org.kmodd1.5
	@mkdir -p $(DESTDIR)$(BASHDIR) $(DESTDIR)$(ZSHDIR) $(DESTDIR)$(FISHDIR)
	@$(COMPLETION) bash > $(DESTDIR)$(BASHDIR)/kmodctl
	@$(COMPLETION) zsh > $(DESTDIR)$(ZSHDIR)/_kmodctl
	@$(COMPLETION) fish > $(DESTDIR)$(FISHDIR)/kmodctl.fish
	@chmod 0644 $(addprefix $(DESTDIR),$(BASHDIR)/kmodctl $(ZSHDIR)/_kmodctl $(FISHDIR)/kmodctl.fish)
	@install -D -m 0644 -t $(DESTDIR)$(DOCDIR) $(DOCS)
	@! { $(LIVE); } || install/after-install
	@echo "kmodd is installed in $(DESTDIR)$(PREFIX)"

install-gateway-deps: ## install the Debian packages the HTTP gateway needs
	apt-get update
	apt-get install -y --no-install-recommends $(GATEWAY_PACKAGES)

install-gateway: install ## install kmodd and its HTTP gateway; then create a token and start it
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
	@$(call INSTALL_PAGES,$(filter kmodd-gateway%,$(PAGES)))
	@install -m 0644 -t $(DESTDIR)$(DOCDIR) $(GATEWAYDOCS)
	@! { $(LIVE); } || install/after-install-gateway
	@echo "The gateway is installed. kmodctl token create NAME --scope read; systemctl enable --now kmodd-gateway.socket"

install-cockpit: ## install the page "Kernel modules" for Cockpit 287 or later; it needs nothing but kmodd
	@install/remember-directories "$(DESTDIR)" $(MANIFEST) $(PKGDIR) $(sort $(dir $(INSTALLED_COCKPIT)))
	@rm -rf $(DESTDIR)$(COCKPITDIR)
	@install -D -m 0644 -t $(DESTDIR)$(COCKPITDIR) $(COCKPITPAGE)
	@install -D -m 0644 -t $(DESTDIR)$(COCKPITDIR)/shared $(COCKPITVIEWS)
	@install -D -m 0644 -t $(DESTDIR)$(METAINFODIR) cockpit/org.kmodd.cockpit.metainfo.xml
	@echo "The page is installed: log in to Cockpit again, and open Tools, Kernel modules"

install-agent-deps: ## install the libraries the Kubernetes agent needs, from PyPI, beside kmodd
	apt-get update
	apt-get install -y --no-install-recommends python3-pip
	$(SYSTEM_PYTHON) -m pip install --quiet --disable-pip-version-check --upgrade \
		--target $(DESTDIR)$(PKGDIR)/libraries 'lightkube>=1.0.1,<2' 'prometheus-client>=0.16,<1'

install-agent: install ## install kmodd and its Kubernetes agent; an administrator gives it a kubeconfig and a polkit rule
	@install/remember-directories "$(DESTDIR)" $(MANIFEST) $(PKGDIR) $(sort $(dir $(INSTALLED) $(INSTALLED_AGENT)))
	@mkdir -p $(sort $(dir $(addprefix $(DESTDIR),$(INSTALLED_AGENT))))
	@$(FILL_IN) bin/kmodd-agent.in > $(DESTDIR)$(PREFIX)/bin/kmodd-agent
	@chmod 0755 $(DESTDIR)$(PREFIX)/bin/kmodd-agent
	@for unit in $(AGENTUNITS); do $(FILL_IN) systemd/$$unit.in > $(DESTDIR)$(UNITDIR)/$$unit || exit 1; done
	@chmod 0644 $(addprefix $(DESTDIR)$(UNITDIR)/,$(AGENTUNITS))
	@install -m 0644 deploy/kubernetes/node/kmodd-agent.sysusers $(DESTDIR)$(SYSUSERSDIR)/kmodd-agent.conf
	@$(call INSTALL_PAGES,$(filter kmodd-agent%,$(PAGES)))
	@install -m 0644 -t $(DESTDIR)$(DOCDIR) $(AGENTDOCS)
	@! { $(LIVE); } || install/after-install-agent
	@echo "The agent is installed. It needs /etc/kmodd/agent.kubeconfig and a polkit rule: see kmodd-agent(8)"

uninstall: ## stop kmodd and remove all of its files, including its state
	@! { $(LIVE); } || systemctl disable --now --quiet kmodd.service kmodd-notifier.service \
		kmodd-gateway.socket kmodd-gateway.service kmodd-agent.service 2>/dev/null || true
	@rm -rf $(DESTDIR)$(PKGDIR)/kmodd $(DESTDIR)$(PKGDIR)/dbus $(DESTDIR)$(PKGDIR)/libraries
	@rm -rf $(DESTDIR)$(COCKPITDIR)
	@rm -f $(addprefix $(DESTDIR),$(INSTALLED) $(INSTALLED_GATEWAY) $(INSTALLED_COCKPIT) $(INSTALLED_AGENT))
	@made=$$(cat $(DESTDIR)$(MANIFEST) 2>/dev/null); rm -f $(DESTDIR)$(MANIFEST); for directory in $$made; do \
		[ ! -d $(DESTDIR)$$directory ] || rmdir --ignore-fail-on-non-empty $(DESTDIR)$$directory; done
	@! { $(LIVE); } || install/after-uninstall
	@echo "kmodd is removed from $(DESTDIR)$(PREFIX)"
