// SPDX-License-Identifier: LGPL-2.1-or-later
// Shows /openapi.json. Everything that comes from it is inserted as text.
"use strict";

const pretty = (value) => typeof value === "string" ? value : JSON.stringify(value, null, 2);

// Text between backquotes is code.
function say(node, text) {
  node.replaceChildren(...text.split("`").map((part, index) => {
    if (index % 2 === 0) return part;
    const code = document.createElement("code");
    code.textContent = part;
    return code;
  }));
}

function fill(list, rows) {
  for (const [name, text] of rows) {
    const term = document.createElement("dt");
    const description = document.createElement("dd");
    term.textContent = name;
    say(description, text);
    list.append(term, description);
  }
}

function resolve(openapi, schema) {
  const name = schema && JSON.stringify(schema).match(/#\/components\/schemas\/(\w+)/);
  return name ? openapi.components.schemas[name[1]] : schema || {};
}

function kind(schema) {
  const variants = (schema.anyOf || []).map(kind).filter((one) => one !== "null");
  const name = (schema.$ref || "").split("/").pop();
  const base = schema.enum ? schema.enum.join(" | ") : name || schema.type || variants.join(" | ") || "object";
  return schema.default === undefined || schema.default === "" ? base : `${base}, default ${JSON.stringify(schema.default)}`;
}

function section(node, name, show) {
  const found = node.querySelector("." + name);
  if (!show) found.remove();
  return show ? found : null;
}

function route(openapi, path, method, operation) {
  const node = document.getElementById("route").content.cloneNode(true);
  const text = (selector, value) => { node.querySelector(selector).textContent = value; };
  text(".method", method.toUpperCase());
  text(".path", path);
  text(".summary", operation.summary || "");
  text(".scope", operation["x-scope"] || "");
  say(node.querySelector(".text"), operation.description || "");
  const parameters = operation.parameters || [];
  const list = section(node, "parameters", parameters.length);
  if (list) fill(list.querySelector("dl"), parameters.map((one) =>
    [`${one.name} (${one.in})`, [kind(one.schema || {}), one.description].filter(Boolean).join(". ")]));
  const content = operation.requestBody && Object.entries(operation.requestBody.content)[0];
  const body = section(node, "body", content);
  if (body) {
    body.querySelector("pre").textContent = content[1].example ? pretty(content[1].example) : content[0];
    const properties = resolve(openapi, content[1].schema).properties || {};
    fill(body.querySelector("dl"), Object.entries(properties).map(([name, one]) =>
      [name, [kind(one), one.description].filter(Boolean).join(". ")]));
  }
  const example = parameters.filter((one) => one.in === "path")
    .reduce((made, one) => made.replace(`{${one.name}}`, one.example || one.name), path);
  const words = ["curl", "-X", method.toUpperCase()];
  if (operation.security) words.push("-H \"Authorization: Bearer $TOKEN\"");
  if (content && content[1].example) words.push("--json", `'${JSON.stringify(content[1].example)}'`);
  else if (content) words.push("-H", `'Content-Type: ${content[0]}'`, "--data-binary", "@FILE");
  words.push(location.origin + example);
  node.querySelector(".call pre").textContent = words.join(" ");
  const answers = Object.entries(operation.responses);
  const good = answers.find(([status]) => status.startsWith("2"));
  const shown = good && good[1].content && Object.values(good[1].content)[0].example;
  const answer = section(node, "answer", shown);
  if (answer) answer.querySelector("pre").textContent = pretty(shown);
  const bad = answers.filter(([status]) => !status.startsWith("2"));
  const errors = section(node, "errors", bad.length);
  if (errors) fill(errors.querySelector("dl"), bad.map(([status, one]) => [status, one.description]));
  return node;
}

async function show() {
  const answer = await fetch("/openapi.json");
  if (!answer.ok) throw new Error(`the gateway responded with ${answer.status}`);
  const openapi = await answer.json();
  document.getElementById("title").textContent = `${openapi.info.title} ${openapi.info.version}: HTTP API`;
  document.getElementById("about").textContent = openapi.info.description;
  const routes = document.getElementById("routes");
  for (const [path, methods] of Object.entries(openapi.paths))
    for (const [method, operation] of Object.entries(methods)) routes.append(route(openapi, path, method, operation));
  const all = [...routes.children];
  const find = document.getElementById("find");
  const narrow = () => {
    const wanted = find.value.trim().toLowerCase();
    for (const one of all) one.hidden = !one.textContent.toLowerCase().includes(wanted);
    const shown = all.filter((one) => !one.hidden).length;
    document.getElementById("found").textContent = shown === all.length ? `${shown} routes` : `${shown} of ${all.length} routes`;
  };
  find.addEventListener("input", narrow);
  narrow(); // the browser may have restored the field's text
}

show().catch((error) => {
  document.getElementById("about").textContent = `Cannot read /openapi.json: ${error.message}`;
});
