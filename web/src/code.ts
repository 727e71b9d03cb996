// The dialog "Copy as code".

import { byId, copy, element, toast } from "./dom";
import type { RerankBody } from "./request";
import { SNIPPETS } from "./snippets";
import { tabs } from "./tabs";

/** Set the dialog up. Returns a function that opens it for a request. */
export function codeDialog(): (url: string, body: RerankBody, hasKey: boolean) => void {
  const dialog = byId<HTMLDialogElement>("code-dialog");
  let current: [string, RerankBody, boolean] | null = null;
  const buttons = SNIPPETS.map(({ name }) =>
    element("button", { type: "button", role: "tab", id: `code-${name.toLowerCase()}`, "aria-controls": "code" }, name),
  );
  byId("code-tabs").append(...buttons);
  const show = tabs(buttons, (index) => {
    const snippet = SNIPPETS[index]!;
    if (current) byId("code").textContent = snippet.code(...current);
    const key = current?.[2] ? "Reads the key from RERANKER_API_KEY." : "";
    byId("code-note").textContent = [snippet.note, key].filter(Boolean).join(" ");
    byId("code").setAttribute("aria-label", `The request in ${snippet.name}`);
  });
  byId("code-copy").addEventListener("click", async () => {
    const copied = await copy(byId("code").textContent ?? "");
    toast(copied ? "Copied" : "The browser does not allow copying: select the code instead");
  });
  byId("code-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  return (...request) => {
    current = request;
    show(Math.max(0, buttons.findIndex((button) => button.getAttribute("aria-selected") === "true")));
    dialog.showModal();
  };
}
