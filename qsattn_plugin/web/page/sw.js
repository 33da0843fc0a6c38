// Keeps the page on the visitor's device, so that it works without a network, and says what the page may do.
// Small files are kept when the page is first opened; models and the runtime when they are first used.

const KEPT = `qsattn ${registration.scope} __VERSION__`; // other pages of the same host have caches of their own
const HEADERS = {
  "Content-Security-Policy": "__POLICY__",
  "Cross-Origin-Opener-Policy": "same-origin", // these two let the runtime use several cores
  "Cross-Origin-Embedder-Policy": "require-corp",
};

addEventListener("install", (event) => {
  const fresh = __FILES__.map((file) => new Request(file, { cache: "reload" }));
  event.waitUntil(caches.open(KEPT).then((cache) => cache.addAll(fresh)).then(() => skipWaiting()));
});

addEventListener("activate", (event) => {
  const old = (name) => name.startsWith(`qsattn ${registration.scope} `) && name !== KEPT;
  const tidy = async () => Promise.all((await caches.keys()).filter(old).map((name) => caches.delete(name)));
  event.waitUntil(tidy().then(() => clients.claim()));
});

addEventListener("fetch", (event) => {
  if (event.request.method === "GET" && event.request.url.startsWith("http")) event.respondWith(answer(event.request));
});

async function answer(request) {
  const cache = await caches.open(KEPT);
  let found = await cache.match(request, { ignoreSearch: true, ignoreVary: true });
  if (!found) {
    found = await fetch(request);
    if (found.ok) await cache.put(request, found.clone());
  }
  const headers = new Headers(found.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  return new Response(found.body, { status: found.status, statusText: found.statusText, headers });
}
