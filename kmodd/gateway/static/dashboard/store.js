// SPDX-License-Identifier: LGPL-2.1-or-later
// The store: versions of custom modules.

import {ask, upload} from "./api.js";
import {change} from "./shared/change.js";
import {grid, make, moduleLink, nothing, section, show} from "./shared/dom.js";
import {size} from "./shared/wording.js";

/** Kinds of events after which the store may have changed. */
export const concerns = ["store-", "module-", "configuration-"];

const of = (one, rest = "") => `/v1/store/${encodeURIComponent(one.name)}/${encodeURIComponent(one.version)}${rest}`;

const take = () =>
  change({
    title: "Import a module’s file",
    verb: "Import",
    fields: [
      {name: "file", label: "File (.ko, .ko.xz, .ko.zst or .ko.gz)", kind: "file"},
      {name: "version", label: "Version", kind: "text", hint: "default: its own, or one made from its hash"},
      {name: "shadow", label: "import it even if the kernel has a module of this name", kind: "flag"},
    ],
    preview: async ({file}) => ({
      content: make(
        "p",
        {},
        file ? `${file.name}, ${size(file.size)}, is` : "The file is",
        " examined in an unprivileged process: format, architecture, version magic, symbols, signature. Then it is stored. Nothing is loaded.",
      ),
    }),
    perform: async ({file, version, shadow, reason}) => {
      const query = new URLSearchParams({description: reason});
      if (version) query.set("version", version);
      if (shadow) query.set("shadow", "true");
      const found = await upload(`/v1/store?${query}`, file);
      return `${found.name} ${found.version} is in the store.`;
    },
  });

const loadFlag = {
  name: "load",
  label: "load it now; if that fails, the previous module is loaded again",
  kind: "flag",
};

const activate = (one) =>
  change({
    title: `Activate ${one.name} ${one.version}`,
    verb: "Activate",
    fields: [loadFlag],
    preview: async ({load}) => ({
      content: make(
        "p",
        {},
        `For kernel ${one.kernel}, ${one.name} will be version ${one.version}`,
        load ? ", and is loaded or reloaded immediately." : "; loaded modules stay loaded.",
      ),
    }),
    perform: async ({load, reason}) =>
      (await ask("POST", of(one, "/activate"), {load, kernel: one.kernel, reason})).message,
  });

const deactivate = (one) =>
  change({
    title: `Deactivate ${one.name} ${one.version}`,
    verb: "Deactivate",
    fields: [{...loadFlag, label: "load the kernel’s own module now, if there is one"}],
    preview: async ({load}) => ({
      content: make(
        "p",
        {},
        `For kernel ${one.kernel}, ${one.name} will be the kernel’s own module again, if there is one`,
        load ? ", which is loaded immediately." : "; loaded modules stay loaded.",
      ),
    }),
    perform: async ({load, reason}) =>
      (await ask("POST", `/v1/store/${encodeURIComponent(one.name)}/deactivate`, {load, kernel: one.kernel, reason}))
        .message,
  });

const remove = (one) =>
  change({
    title: `Remove ${one.name} ${one.version}`,
    verb: "Remove",
    preview: async () => ({
      content: make("p", {}, "The file is deleted from the store. To restore it, import it again."),
    }),
    perform: async ({reason}) => (await ask("DELETE", of(one, `?${new URLSearchParams({reason})}`))).message,
  });

function row(one) {
  const act = (text, way) =>
    make(
      "button",
      {
        type: "button",
        class: "small",
        "data-key": `${text}-${one.name}-${one.version}-${one.kernel}`,
        "aria-label": `${text} ${one.name} ${one.version}`,
        click: () => way(one),
      },
      `${text} …`,
    );
  return make(
    "tr",
    {},
    make("th", {scope: "row"}, moduleLink(one.name)),
    make("td", {class: "code"}, one.version),
    make("td", {}, one.active ? make("span", {class: "chip good"}, "active") : make("span", {class: "dim"}, "kept")),
    make("td", {class: "code"}, one.kernel),
    make("td", {class: "number"}, size(one.size)),
    make("td", {}, one.signed ? one.signer || "signed" : make("span", {class: "warn"}, "unsigned")),
    make("td", {class: "code dim", title: one.sha256}, one.sha256.slice(0, 12)),
    make("td", {}, one.description),
    make(
      "td",
      {class: "act"},
      one.active ? act("Deactivate", deactivate) : [act("Activate", activate), " ", act("Remove", remove)],
    ),
  );
}

const table = (versions) =>
  grid(
    "rules",
    ["Module", "Version", "State", "Kernel", make("th", {scope: "col", class: "number"}, "Size"), "Signature", "SHA-256", "Description", ""],
    versions.map(row),
  );

/** The view. */
export function open(main) {
  const body = make("div");
  main.append(
    make("p", {class: "buttons"}, make("button", {type: "button", class: "primary", click: take}, "Import …")),
    body,
  );

  async function again() {
    const {versions} = await ask("GET", "/v1/store");
    show(body, versions, () => [
      section(
        "Versions",
        versions.length
          ? table(versions)
          : nothing("The store is empty. Imported module files are kept in versions for each kernel."),
      ),
    ]);
  }

  return {title: "Store", refresh: again};
}
