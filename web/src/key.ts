// The dialog for the API key. The key stays in the memory of the page.

import { byId, toast } from "./dom";
import type { Service } from "./service";

/** Set the dialog up. Returns a function that opens it; `changed` runs after a key was entered or forgotten. */
export function keyDialog(service: Service, changed: () => void): () => void {
  const dialog = byId<HTMLDialogElement>("key-dialog");
  const field = byId<HTMLInputElement>("key");
  const button = byId("key-open");
  const use = (key: string): void => {
    service.key = key.trim();
    button.textContent = service.key ? "Key ✓" : "Key";
    button.setAttribute("aria-label", service.key ? "API key: set" : "API key: none");
    changed();
  };
  const open = (): void => {
    field.value = service.key;
    dialog.showModal();
    field.focus();
  };
  button.addEventListener("click", open);
  byId<HTMLFormElement>("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close();
    use(field.value);
    if (service.key) toast("The page sends this key until you reload");
  });
  byId("key-forget").addEventListener("click", () => {
    dialog.close();
    use("");
  });
  return open;
}
