// An OPC UA server made of node-opcua, for the tests of our client.
//
//   node server.mjs FOLDER CERTIFICATE KEY
//
// FOLDER is for its trust list, CERTIFICATE and KEY are its own (PEM). Listens on 127.0.0.1, with the policies None,
// Basic256Sha256, Aes128_Sha256_RsaOaep and Aes256_Sha256_RsaPss; anonymous, or user "line" with password "fill it".
// Client certificates are taken without asking. Prints "port N". Commands, each answered with one line of JSON:
//
//   get NAME           what the variable holds; 64-bit integers as strings
//   set NAME JSON      the variable changes by itself, as in a running plant
//   status NAME CODE   its status from now on (Good, BadDeviceFailure, ...)
//   sessions           how many sessions are open
//
// Ends when its input does.
import path from "node:path";
import readline from "node:readline";
import { OPCUACertificateManager } from "node-opcua-certificate-manager";
import { MessageSecurityMode, SecurityPolicy } from "node-opcua-secure-channel";
import { OPCUAServer } from "node-opcua-server";
import { StatusCodes } from "node-opcua-status-code";
import { DataType, Variant, VariantArrayType } from "node-opcua-variant";

console.log = console.error; // the library's remarks; our answers go out by themselves
const say = (text) => process.stdout.write(`${text}\n`);
const [folder, certificateFile, privateKeyFile] = process.argv.slice(2);
const URI = "urn:linewright:peer:plant";
const START = {
    Boolean: false, SByte: -1, Byte: 1, Int16: -2, UInt16: 2, Int32: -3, UInt32: 3, Int64: "-4", UInt64: "4",
    Float: 0.5, Double: 0.25, String: "L1",
};
const wide = (type) => type.endsWith("Int64"); // node-opcua holds them as [high, low]

const variant = (type, value) => {
    const scalar = { dataType: DataType[type], arrayType: VariantArrayType.Scalar };
    if (!wide(type)) return new Variant({ ...scalar, value });
    const bits = BigInt.asUintN(64, BigInt(value));
    return new Variant({ ...scalar, value: [Number(bits >> 32n), Number(bits & 0xffffffffn)] });
};

const plain = (type, value) => {
    if (!wide(type)) return value;
    const bits = (BigInt(value[0]) << 32n) | BigInt(value[1]);
    return String(type === "Int64" ? BigInt.asIntN(64, bits) : bits);
};

const certificates = new OPCUACertificateManager({
    rootFolder: path.join(folder, "pki"), automaticallyAcceptUnknownCertificate: true,
});
await certificates.initialize();

const server = new OPCUAServer({
    host: "127.0.0.1",
    hostname: "127.0.0.1",
    port: 0,
    certificateFile,
    privateKeyFile,
    serverCertificateManager: certificates,
    userCertificateManager: certificates,
    serverInfo: { applicationUri: "urn:linewright:peer:server" },
    securityModes: [MessageSecurityMode.None, MessageSecurityMode.Sign, MessageSecurityMode.SignAndEncrypt],
    securityPolicies: [
        SecurityPolicy.None, SecurityPolicy.Basic256Sha256,
        SecurityPolicy.Aes128_Sha256_RsaOaep, SecurityPolicy.Aes256_Sha256_RsaPss,
    ],
    allowAnonymous: true,
    userManager: { isValidUser: (user, password) => user === "line" && password === "fill it" },
});
await server.initialize();

const space = server.engine.addressSpace;
const namespace = space.registerNamespace(URI);
const plant = namespace.addObject({ organizedBy: space.rootFolder.objects, browseName: "Plant", nodeId: "s=Plant" });
const variables = {};
for (const [type, value] of Object.entries(START)) {
    variables[type] = namespace.addVariable({
        componentOf: plant, browseName: type, nodeId: `s=${type}`, dataType: DataType[type], minimumSamplingInterval: 10,
    });
    variables[type].setValueFromSource(variant(type, value));
}
variables.Sealed = namespace.addVariable({
    componentOf: plant, browseName: "Sealed", nodeId: "s=Sealed", dataType: DataType.UInt16,
    accessLevel: "CurrentRead", userAccessLevel: "CurrentRead",
});
variables.Sealed.setValueFromSource(variant("UInt16", 3));

await server.start();
say(`port ${server.endpoints[0].port}`);

const typeOf = (name) => (name === "Sealed" ? "UInt16" : name);
const commands = {
    get: (name) => plain(typeOf(name), variables[name].readValue().value.value),
    set: (name, text) => {
        variables[name].setValueFromSource(variant(typeOf(name), JSON.parse(text)));
        return "ok";
    },
    status: (name, code) => {
        const now = variables[name].readValue();
        variables[name].setValueFromSource(now.value, StatusCodes[code]);
        return "ok";
    },
    sessions: () => server.engine.currentSessionCount,
};
for await (const line of readline.createInterface({ input: process.stdin })) {
    const [verb, name, ...rest] = line.split(" ");
    say(JSON.stringify(commands[verb](name, rest.join(" "))));
}
process.exit(0); // as if its power went: nobody is told good-bye
