// Every address is relative to this page, so that it also works behind a proxy under a sub-path.
const here = new URL(".", window.location.href);

async function show() {
  const answer = await fetch(new URL("openapi.json", here));
  if (!answer.ok) {
    throw new Error(`openapi.json: ${answer.status} ${answer.statusText}`);
  }
  const spec = await answer.json();
  spec.servers = [{ url: here.href.replace(/\/$/, "") }];
  SwaggerUIBundle({
    dom_id: "#api",
    spec,
    deepLinking: true,
    displayRequestDuration: true,
    queryConfigEnabled: false,
    validatorUrl: null,
  });
}

show().catch((error) => {
  document.getElementById("api").textContent = `The API description could not be loaded: ${error.message}`;
});
