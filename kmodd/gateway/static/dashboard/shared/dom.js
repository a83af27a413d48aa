// SPDX-License-Identifier: LGPL-2.1-or-later
// Elements, made one by one. Whatever comes from a module, a file or the journal ends up in a text node or an attribute
// of ours: there is no markup in a string anywhere in this page.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  // Strings become text nodes.
  node.append(...children.flat(Infinity).filter((child) => ![null, undefined, false, ""].includes(child)));
  return node;
}

/** An HTML element. Functions among the attributes listen to the event of that name; null and false are left out. */
export const make = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);

/** An SVG element. */
export const draw = (name, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, name), attributes, children);

/** A link to a module's page. */
export const moduleLink = (name) =>
  make("a", {href: `#/modules/${encodeURIComponent(name)}`, class: "module", "data-key": `to-${name}`}, name);

/** Nodes with a separator between them. */
export const joined = (nodes, separator = ", ") => nodes.flatMap((node, index) => (index ? [separator, node] : [node]));

/** A section with a heading. */
export const section = (title, ...children) => make("section", {}, make("h2", {}, title), ...children);

/** A table that scrolls by itself where it is too wide. Headers are texts or nodes; an empty one heads what needs no name. */
export const grid = (kind, headers, rows) =>
  make(
    "div",
    {class: "wide"},
    make(
      "table",
      {class: kind},
      make(
        "thead",
        {},
        make(
          "tr",
          {},
          ...headers.map((one) => (one instanceof Node ? one : one ? make("th", {scope: "col"}, one) : make("td"))),
        ),
      ),
      make("tbody", {}, ...rows),
    ),
  );

/** The text for an empty list. */
export const nothing = (...words) => make("p", {class: "nothing"}, ...words);

/** The element with this data-key. */
export const keyed = (node, key) => [...node.querySelectorAll("[data-key]")].find((one) => one.dataset.key === key);

/** Focus the element with this data-key, or the heading if it no longer exists, so that the focus is never lost. */
export const focusOn = (key) => (keyed(document, key) || document.querySelector("h1"))?.focus({preventScroll: true});

/**
 * Replace what is in a node, unless what it shows is the same as last time (`facts`, compared as JSON). The focus and
 * opened details are restored by their data-key, so that an event does not interrupt the user.
 */
export function show(node, facts, children) {
  const told = JSON.stringify(facts);
  if (node.told === told) return;
  node.told = told;
  const focused = node.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const opened = [...node.querySelectorAll("details[open][data-key]")].map((one) => one.dataset.key);
  node.replaceChildren(...children().flat(Infinity).filter(Boolean));
  for (const key of opened) keyed(node, key)?.setAttribute("open", "");
  if (focused) focusOn(focused);
}
